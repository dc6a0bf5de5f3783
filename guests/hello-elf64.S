/* ELF64, entered in 64-bit mode. Kept tiny: it is what start-up time is measured with. */
#include "common.S"
        .code64
        .globl  start
start:
        lea     rsp, stack_top[rip]
        lea     rsi, message[rip]
        call    puts
        POWER_OFF

DEFINE_PUTS puts
message:
        .asciz  "Hello from ELF64 long mode\n"

        .bss
        .balign 16
        .skip   256
stack_top:
