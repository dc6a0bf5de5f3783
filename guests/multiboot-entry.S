/* Entry of the C guests that a multiboot (version 1) loader starts: 32-bit protected mode, paging off. */
#include "common.S"

#define HEADER_MAGIC 0x1badb002
#define HEADER_FLAGS 0x3          /* modules on page boundaries; memory information wanted */

        .section .multiboot, "a"
        .balign 4
        .long   HEADER_MAGIC, HEADER_FLAGS, -(HEADER_MAGIC + HEADER_FLAGS)

        .text
        .code32
        .globl  start
start:
        cld
        mov     esp, offset stack_top   /* the loader leaves ESP undefined */
        push    ebx                     /* multiboot information */
        push    eax                     /* the loader's magic */
        call    guest_main
        HALT_FOREVER

        .bss
        .balign 16
        .skip   4096
stack_top:
