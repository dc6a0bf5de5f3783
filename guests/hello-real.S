/* Flat binary, loaded at 0x7C00 and entered there in real mode with CS = 0. */
#include "common.S"
        .code16
        .globl  start
start:
        cld
        xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7c00
        mov     si, offset message
        call    puts
        POWER_OFF

DEFINE_PUTS puts
message:
        .asciz  "Hello from real mode\n"
