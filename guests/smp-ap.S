/* Where an application processor starts: real mode, CS:IP = TRAMPOLINE >> 4 : 0. The code is copied to TRAMPOLINE, so
 * it names its own data relative to that; it goes straight to long mode on the page tables of the first CPU. */
#include "common.S"

#define TRAMPOLINE 0x8000
#define CODE64     0x08
#define DATA       0x10
#define STACK_SIZE 1024
#define MAX_APS    255
#define CR0_PE_PG  0x80000001
#define CR4_PAE    0x20
#define MSR_EFER   0xc0000080
#define EFER_LME   0x100
#define AT(label)  (label - trampoline)

        .text
        .globl  trampoline, trampoline_end, trampoline_cr3, ap_stacks
        .code16
trampoline:
        cli
        mov     ax, cs
        mov     ds, ax
        mov     eax, CR4_PAE
        mov     cr4, eax
        mov     eax, dword ptr ds:[AT(trampoline_cr3)]
        mov     cr3, eax
        mov     ecx, MSR_EFER
        rdmsr
        or      eax, EFER_LME
        wrmsr
        lgdt    ds:[AT(trampoline_gdt_pointer)]
        mov     eax, cr0
        or      eax, CR0_PE_PG          /* protection and paging at once: no stop in 32-bit mode needed */
        mov     cr0, eax
        .byte   0x66, 0xea              /* far jump with a 32-bit offset, since ap_start lies above 64 KiB */
        .long   ap_start
        .short  CODE64

        .balign 8
trampoline_gdt:
        .quad   0
        .quad   0x00af9b000000ffff      /* CODE64 */
        .quad   0x00cf93000000ffff      /* DATA */
trampoline_gdt_pointer:
        .short  trampoline_gdt_pointer - trampoline_gdt - 1
        .long   TRAMPOLINE + AT(trampoline_gdt)
trampoline_cr3:
        .long   0                       /* the first CPU stores its own here, in the copy */
trampoline_end:

        .code64
ap_start:
        mov     eax, DATA
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        lgdt    gdt_pointer[rip]        /* the trampoline's page is free for reuse from here on */
        mov     edi, 1
        lock xadd dword ptr next_ap[rip], edi   /* EDI: this CPU's number, from 0 */
        cmp     edi, MAX_APS
        jae     no_stack
        lea     eax, [rdi + 1]
        imul    eax, eax, STACK_SIZE
        lea     rsp, ap_stacks[rip]
        add     rsp, rax
        call    ap_main
no_stack:
        HALT_FOREVER

        .data
        .balign 4
next_ap:
        .long   0

        .bss
        .balign 16
ap_stacks:
        .skip   MAX_APS * STACK_SIZE
