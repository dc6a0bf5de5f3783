/* Entry of a guest started by the PVH protocol: 32-bit protected mode, paging off, EBX = hvm_start_info. */
#include "common.S"

#define XEN_ELFNOTE_PHYS32_ENTRY 18

        .section .note.Xen, "a", @note
        .balign 4
        .long   4, 4, XEN_ELFNOTE_PHYS32_ENTRY  /* size of name, size of descriptor, type */
        .asciz  "Xen"
        .long   start

        .text
        .code32
        .globl  start
start:
        cld
        mov     esp, offset stack_top   /* the protocol leaves ESP undefined */
        push    ebx
        call    guest_main
        HALT_FOREVER

        .bss
        .balign 16
        .skip   4096
stack_top:
