/* ELF64: send each received byte back, until `q`. */
#include "common.S"

#define EXIT_VALUE 3                    /* exit status 7: (value << 1) | 1 */

        .code64
        .globl  start
start:
        lea     rsp, stack_top[rip]
        lea     rsi, ready[rip]
        call    puts
next_byte:
        mov     dx, COM1_LSR
wait_receive:
        in      al, dx
        test    al, LSR_DR
        jz      wait_receive
        mov     dx, COM1_DATA
        in      al, dx
        mov     bl, al
        mov     dx, COM1_LSR
wait_transmit:
        in      al, dx
        test    al, LSR_THRE
        jz      wait_transmit
        mov     al, bl
        mov     dx, COM1_DATA
        out     dx, al
        cmp     bl, 'q'
        jne     next_byte
        lea     rsi, bye[rip]
        call    puts
        DEBUG_EXIT EXIT_VALUE

DEFINE_PUTS puts
ready:  .asciz  "echo ready\n"
bye:    .asciz  "bye\n"

        .bss
        .balign 16
        .skip   256
stack_top:
