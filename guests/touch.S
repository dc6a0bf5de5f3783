/* ELF64: write one byte to each page of the mebibyte at 16 MiB, then halt for good, so that the memory that the
 * guest costs its host can be measured while nothing moves. Needs more than 17 MiB of RAM. */
#include "common.S"

#define FIRST_PAGE 0x1000000
#define PAGE_SIZE  0x1000
#define PAGES      256

        .code64
        .globl  start
start:
        lea     rsp, stack_top[rip]
        mov     edi, FIRST_PAGE
        mov     ecx, PAGES
next_page:
        mov     byte ptr [rdi], 1
        add     rdi, PAGE_SIZE
        dec     ecx
        jnz     next_page
        lea     rsi, message[rip]
        call    puts
        HALT_FOREVER

DEFINE_PUTS puts
message:
        .asciz  "touched 256 pages\n"

        .bss
        .balign 16
        .skip   256
stack_top:
