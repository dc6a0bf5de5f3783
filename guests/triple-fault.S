/* ELF64: a page fault without an interrupt descriptor table. Its delivery faults, so does the double fault's, and the
 * CPU shuts down. */
#include "common.S"

        .code64
        .globl  start
start:
        lea     rsp, stack_top[rip]
        lea     rsi, message[rip]
        call    puts
        lidt    no_idt[rip]
        movabs  rbx, 0xdeadbeef000      /* canonical, and above the identity map */
        call    crash_here
        DEBUG_EXIT 1                    /* only reached if the address is mapped */

        .globl  crash_here
        .type   crash_here, @function
crash_here:
        mov     rax, [rbx]
        ret
        .size   crash_here, . - crash_here

DEFINE_PUTS puts
message:
        .asciz  "triple-fault: reading 0xdeadbeef000 with an empty IDT\n"
        .balign 8
no_idt:
        .short  0
        .quad   0

        .bss
        .balign 16
        .skip   256
stack_top:
