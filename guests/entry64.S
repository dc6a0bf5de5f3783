/* Entry of the 64-bit C guests. Brings its own descriptor table: interrupt returns reload CS and SS, and nothing else
 * promises that the loader's table still lies where it was. */
#include "common.S"

#define CODE64 0x08
#define DATA   0x10

        .text
        .code64
        .globl  start, gdt_pointer
start:
        cli
        cld
        lea     rsp, stack_top[rip]
        lgdt    gdt_pointer[rip]
        mov     eax, DATA
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        push    CODE64
        lea     rax, reloaded[rip]
        push    rax
        retfq
reloaded:
        call    guest_main
        HALT_FOREVER

        .balign 8
gdt:
        .quad   0
        .quad   0x00af9b000000ffff      /* CODE64 */
        .quad   0x00cf93000000ffff      /* DATA */
gdt_pointer:
        .short  gdt_pointer - gdt - 1
        .quad   gdt

        .bss
        .balign 16
        .skip   4096
stack_top:
