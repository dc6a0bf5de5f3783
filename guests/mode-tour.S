/* Flat binary, loaded at 0x7C00 and entered there in real mode: a tour of the CPU's modes and back. A mode is reported
 * only once the CPU has behaved as that mode demands: instructions decode at its operand size, and its way of forming
 * addresses (segment arithmetic, descriptors, two, three or four levels of page tables) reaches the expected memory.
 * The same linear address leads to a different physical page in each paging mode, so that no mode can pass for another.
 * A CPU may refuse paging outside long mode with #GP (a KVM that knows paging in long mode only does); such a leg is
 * reported as skipped. Needs 8 MiB of RAM. */
#include "common.S"

/* Physical memory. Everything from TABLES to TABLES_END is zeroed first. */
#define STACK_TOP    0x7c00
#define TABLES       0x10000
#define PD_32        0x10000    /* 32-bit paging: two levels */
#define PT_32        0x11000
#define PT_32_ALIAS  0x12000
#define PDPT_PAE     0x13000    /* PAE: three levels */
#define PD_PAE       0x14000
#define PT_PAE       0x15000
#define PML4_LONG    0x16000    /* long mode: four levels */
#define PDPT_LONG    0x17000
#define PD_LONG      0x18000
#define PT_LONG      0x19000
#define IDT_32       0x1a000
#define TABLES_END   0x1b000
#define WINDOW       0x20000    /* reached through a segment base */
#define PAGE_32      0x21000    /* what ALIAS leads to with 32-bit paging ... */
#define PAGE_PAE     0x22000    /* ... with PAE ... */
#define PAGE_LONG    0x23000    /* ... and in long mode */
#define PAGE_CODE    0x24000    /* what ALIAS_CODE leads to with PAE */

#define ALIAS        0x400000   /* RAM too: without paging it is itself */
#define ALIAS_CODE   0x401000
#define ALIAS_HIGH   0x8000400000  /* the same page through the second entry of the PML4 */

#define MARK_NONE    0x50485953 /* at ALIAS itself */
#define MARK_32      0x00003232
#define MARK_PAE     0x00504145
#define MARK_LONG    0x4c4f4e47
#define MARK_WINDOW  0x57494e44

#define PRESENT_WRITE 3
#define LARGE        0x80
#define CR0_PE       0x1
#define CR0_PG       0x80000000
#define CR4_PAE      0x20
#define MSR_EFER     0xc0000080
#define EFER_LME     0x100
#define EFER_LMA     0x400
#define EFER_NXE     0x800
#define CPUID_NX     0x100000   /* CPUID 0x80000001, EDX */
#define VECTOR_GP    13
#define VECTOR_PF    14
#define PF_FETCH     0x11       /* error code: entry present, instruction fetch */

#define CODE32       0x08
#define DATA32       0x10
#define DATA_WINDOW  0x18
#define CODE64       0x20
#define CODE16       0x28
#define DATA16       0x30

/* One character, in byte-sized instructions only: they decode alike at every operand size, and this is what runs when
 * the operand size is not the expected one. */
.macro FAIL_CHAR character
21:     mov     dh, COM1_LSR >> 8
        mov     dl, COM1_LSR & 0xff
        in      al, dx
        test    al, LSR_THRE
        jz      21b
        mov     dl, COM1_DATA & 0xff
        mov     al, \character
        out     dx, al
.endm

.macro FAIL
        FAIL_CHAR 'F'
        FAIL_CHAR 'A'
        FAIL_CHAR 'I'
        FAIL_CHAR 'L'
        FAIL_CHAR '\n'
        mov     dh, DEBUG_EXIT_PORT >> 8
        mov     dl, DEBUG_EXIT_PORT & 0xff
        mov     al, 1
        out     dx, al
        HALT_FOREVER
.endm

/* Fail unless the flags say equal. The jump is a short one, which is the same in every mode. */
.macro EXPECT_EQUAL
        je      22f
        FAIL
22:
.endm

/* Fail unless code decodes at this operand size. The bytes read
 *   16 bits: xor ax,ax;   inc ax;   nop; mov cx,2; mov cl,4;     add al,cl    AL = 5
 *   32 bits: xor eax,eax; inc eax;  nop; mov ecx,0x4b10002;      add al,cl    AL = 3
 *   64 bits: xor eax,eax; (REX) nop;     mov ecx,0x4b10002;      add al,cl    AL = 2 */
#define DECODES_16 5
#define DECODES_32 3
#define DECODES_64 2
.macro EXPECT_DECODING al_value
        .byte   0x31, 0xc0, 0x40, 0x90, 0xb9, 0x02, 0x00, 0xb1, 0x04, 0x00, 0xc8
        cmp     al, \al_value
        EXPECT_EQUAL
.endm

/* Fail unless ALIAS, through \pointer, is another name of the page at \page, for reads and for writes. */
.macro EXPECT_ALIAS pointer, page, mark
        cmp     dword ptr [\pointer], \mark
        EXPECT_EQUAL
        mov     dword ptr [\pointer + 4], ~\mark
        cmp     dword ptr [\page + 4], ~\mark
        EXPECT_EQUAL
.endm

.macro EXPECT_LMA value
        mov     ecx, MSR_EFER
        rdmsr
        and     eax, EFER_LMA
        cmp     eax, \value
        EXPECT_EQUAL
.endm

/* Paging must be off while the tables' format changes. */
.macro PAGING_OFF
        mov     eax, cr0
        and     eax, ~CR0_PG
        mov     cr0, eax
.endm

/* A present 32-bit interrupt gate. All code lies below 64 KiB: the upper half of the offset stays zero. */
.macro SET_GATE vector, handler
        mov     dword ptr ds:[IDT_32 + 8 * \vector], CODE32 << 16 + offset \handler
        mov     dword ptr ds:[IDT_32 + 8 * \vector + 4], 0x8e00
.endm

.macro REPORT register, puts, message
        mov     \register, offset \message
        call    \puts
.endm

        .code16
        .globl  start
start:
        cli
        cld
        xor     ax, ax
        mov     ss, ax
        mov     sp, STACK_TOP
        call    check_real
        REPORT  si, puts16, in_real

        lgdt    gdt_pointer
        mov     eax, cr0
        or      al, CR0_PE
        mov     cr0, eax
        ljmp    CODE32, offset protected_mode

/* A real-mode segment is a number to shift: 0x2000:0x10 and 0x2001:0 are one address. Returns with DS = ES = 0. */
check_real:
        EXPECT_DECODING DECODES_16
        mov     eax, cr0
        test    al, CR0_PE
        EXPECT_EQUAL                    /* ZF: the bit is clear */
        mov     ax, WINDOW >> 4
        mov     es, ax
        inc     ax
        mov     ds, ax
        mov     dword ptr es:[0x10], 0
        mov     dword ptr ds:[0], MARK_WINDOW
        cmp     dword ptr es:[0x10], MARK_WINDOW
        EXPECT_EQUAL
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        ret

        .code32
protected_mode:
        mov     ax, DATA32
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     esp, STACK_TOP
        EXPECT_DECODING DECODES_32
        /* A selector is an index: as a real-mode segment, DATA_WINDOW would reach 0x180. */
        mov     ax, DATA_WINDOW
        mov     fs, ax
        mov     dword ptr ds:[WINDOW], 0
        mov     dword ptr fs:[0], MARK_WINDOW
        cmp     dword ptr ds:[WINDOW], MARK_WINDOW
        EXPECT_EQUAL
        mov     eax, cr0
        and     eax, CR0_PG | CR0_PE
        cmp     eax, CR0_PE
        EXPECT_EQUAL
        REPORT  esi, puts32, in_protected

        mov     edi, TABLES
        mov     ecx, (TABLES_END - TABLES) / 4
        xor     eax, eax
        rep     stosd
        mov     dword ptr ds:[ALIAS], MARK_NONE
        mov     dword ptr ds:[PAGE_32], MARK_32
        mov     dword ptr ds:[PAGE_PAE], MARK_PAE
        mov     dword ptr ds:[PAGE_LONG], MARK_LONG
        mov     byte ptr ds:[PAGE_CODE], 0xc3   /* ret */

        SET_GATE VECTOR_GP, general_protection
        SET_GATE VECTOR_PF, page_fault
        lidt    idt_pointer

        /* 32-bit paging: identity for the first MiB, and ALIAS. */
        mov     dword ptr ds:[PD_32], PT_32 | PRESENT_WRITE
        mov     dword ptr ds:[PD_32 + 4 * (ALIAS >> 22)], PT_32_ALIAS | PRESENT_WRITE
        mov     dword ptr ds:[PT_32_ALIAS], PAGE_32 | PRESENT_WRITE
        mov     edi, PT_32
        mov     eax, PRESENT_WRITE
1:      stosd
        add     eax, 0x1000
        cmp     eax, 0x100000
        jb      1b
        xor     eax, eax
        mov     cr4, eax
        mov     eax, PD_32
        mov     esi, offset no_paging
        call    try_paging
        jc      1f
        EXPECT_DECODING DECODES_32
        EXPECT_ALIAS ALIAS, PAGE_32, MARK_32
        mov     esi, offset in_paging
1:      call    puts32

        /* PAE: identity for the first 2 MiB by one large page, and ALIAS. A PDPT entry has no write bit. */
        PAGING_OFF
        mov     eax, CR4_PAE
        mov     cr4, eax
        mov     dword ptr ds:[PDPT_PAE], PD_PAE | 1
        mov     dword ptr ds:[PD_PAE], PRESENT_WRITE | LARGE
        mov     dword ptr ds:[PD_PAE + 8 * (ALIAS >> 21)], PT_PAE | PRESENT_WRITE
        mov     dword ptr ds:[PT_PAE], PAGE_PAE | PRESENT_WRITE
        mov     dword ptr ds:[PT_PAE + 8], PAGE_CODE | PRESENT_WRITE
        mov     eax, PDPT_PAE
        mov     esi, offset no_pae
        call    try_paging
        jc      1f
        EXPECT_DECODING DECODES_32
        EXPECT_ALIAS ALIAS, PAGE_PAE, MARK_PAE
        call    check_no_execute
        mov     esi, offset in_pae
1:      call    puts32

        /* Long mode: the same map with a fourth level, and all of it once more 512 GiB up. */
        PAGING_OFF
        mov     dword ptr ds:[PML4_LONG], PDPT_LONG | PRESENT_WRITE
        mov     dword ptr ds:[PML4_LONG + 8], PDPT_LONG | PRESENT_WRITE
        mov     dword ptr ds:[PDPT_LONG], PD_LONG | PRESENT_WRITE
        mov     dword ptr ds:[PD_LONG], PRESENT_WRITE | LARGE
        mov     dword ptr ds:[PD_LONG + 8 * (ALIAS >> 21)], PT_LONG | PRESENT_WRITE
        mov     dword ptr ds:[PT_LONG], PAGE_LONG | PRESENT_WRITE
        mov     ecx, MSR_EFER
        rdmsr
        or      eax, EFER_LME
        wrmsr
        mov     eax, PML4_LONG
        call    try_paging
        jnc     1f
        FAIL
1:      ljmp    CODE64, offset long_mode

/* Turn paging on with the root in EAX. Returns with carry set if the CPU refuses. */
try_paging:
        mov     cr3, eax
        mov     ebp, esp
        mov     eax, cr0
        or      eax, CR0_PG
turn_on:
        mov     cr0, eax
        clc
        ret
/* Only that one instruction may be refused. As below, dropping the frame is enough, and asks for no iret. */
general_protection:
        cmp     dword ptr ss:[esp + 4], offset turn_on
        EXPECT_EQUAL
        mov     esp, ebp
        stc
        ret

/* Where the CPU has no-execute: a page that ran must fault once its entry forbids it. Only PAE and long mode have the
 * bit, so this also proves the format of the entries. */
check_no_execute:
        mov     eax, 0x80000000
        cpuid
        cmp     eax, 0x80000001
        jb      3f
        mov     eax, 0x80000001
        cpuid
        test    edx, CPUID_NX
        jz      3f
        mov     ecx, MSR_EFER
        rdmsr
        or      eax, EFER_NXE
        wrmsr
        mov     ebx, ALIAS_CODE
        call    ebx
        mov     dword ptr ds:[PT_PAE + 8 + 4], 0x80000000       /* bit 63 */
        invlpg  byte ptr ds:[ALIAS_CODE]
        mov     ebp, esp
        call    ebx
        FAIL
page_fault:
        pop     eax
        and     eax, PF_FETCH
        cmp     eax, PF_FETCH
        EXPECT_EQUAL
        mov     eax, cr2
        cmp     eax, ALIAS_CODE
        EXPECT_EQUAL
        mov     esp, ebp
3:      ret

DEFINE_PUTS puts32

        .code64
long_mode:
        EXPECT_DECODING DECODES_64
        EXPECT_LMA EFER_LMA
        EXPECT_ALIAS ALIAS, PAGE_LONG, MARK_LONG
        movabs  r8, ALIAS_HIGH
        EXPECT_ALIAS r8, PAGE_LONG, MARK_LONG
        REPORT  esi, puts64, in_long
        jmp     fword ptr to_compatibility[rip]

back_in_long_mode:
        EXPECT_DECODING DECODES_64
        mov     rbx, rsp
        push    rax
        sub     rbx, rsp
        cmp     rbx, 8                  /* a push moves the stack by the mode's width */
        pop     rax
        EXPECT_EQUAL
        REPORT  esi, puts64, back_in_long
        jmp     fword ptr to_protected[rip]

DEFINE_PUTS puts64

        .code32
compatibility_mode:
        EXPECT_DECODING DECODES_32
        EXPECT_LMA EFER_LMA
        EXPECT_ALIAS ALIAS, PAGE_LONG, MARK_LONG    /* four levels still, under 32-bit code */
        mov     ebx, esp
        push    eax
        sub     ebx, esp
        cmp     ebx, 4
        pop     eax
        EXPECT_EQUAL
        REPORT  esi, puts32, in_compatibility
        ljmp    CODE64, offset back_in_long_mode

/* Paging can only be turned off in compatibility mode; that ends long mode. */
leave_long_mode:
        PAGING_OFF
        mov     ecx, MSR_EFER
        rdmsr
        and     eax, ~(EFER_LME | EFER_NXE)
        wrmsr
        xor     eax, eax
        mov     cr4, eax
        EXPECT_DECODING DECODES_32
        EXPECT_LMA 0
        cmp     dword ptr ds:[ALIAS], MARK_NONE
        EXPECT_EQUAL
        REPORT  esi, puts32, back_in_protected
        ljmp    CODE16, offset leave_protected_mode

        /* Segments keep their limits into real mode: leave through 64 KiB ones. */
        .code16
leave_protected_mode:
        EXPECT_DECODING DECODES_16
        mov     ax, DATA16
        mov     ds, ax
        mov     es, ax
        mov     fs, ax
        mov     ss, ax
        lidt    real_idt_pointer
        mov     eax, cr0
        and     al, ~CR0_PE & 0xff
        mov     cr0, eax
        ljmp    0, offset real_mode_again
real_mode_again:
        xor     ax, ax
        mov     fs, ax
        mov     ss, ax
        mov     sp, STACK_TOP
        call    check_real
        REPORT  si, puts16, back_in_real
        REPORT  si, puts16, done
        POWER_OFF

DEFINE_PUTS puts16

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      /* CODE32: flat */
        .quad   0x00cf93000000ffff      /* DATA32: flat */
        .quad   0x004093020000ffff      /* DATA_WINDOW: 64 KiB at WINDOW */
        .quad   0x00af9b000000ffff      /* CODE64 */
        .quad   0x00009b000000ffff      /* CODE16: 64 KiB at 0 */
        .quad   0x000093000000ffff      /* DATA16: 64 KiB at 0 */
gdt_pointer:
        .short  gdt_pointer - gdt - 1
        .long   gdt
idt_pointer:
        .short  8 * (VECTOR_PF + 1) - 1
        .long   IDT_32
real_idt_pointer:
        .short  0x3ff
        .long   0
to_compatibility:
        .long   compatibility_mode
        .short  CODE32
to_protected:
        .long   leave_long_mode
        .short  CODE32

in_real:           .asciz "mode-tour: real mode\n"
in_protected:      .asciz "mode-tour: 32-bit protected mode\n"
in_paging:         .asciz "mode-tour: 32-bit paging\n"
in_pae:            .asciz "mode-tour: PAE paging\n"
no_paging:         .asciz "mode-tour: skipped 32-bit paging: refused by the CPU\n"
no_pae:            .asciz "mode-tour: skipped PAE paging: refused by the CPU\n"
in_long:           .asciz "mode-tour: long mode\n"
in_compatibility:  .asciz "mode-tour: compatibility mode\n"
back_in_long:      .asciz "mode-tour: back in long mode\n"
back_in_protected: .asciz "mode-tour: back in protected mode\n"
back_in_real:      .asciz "mode-tour: back in real mode\n"
done:              .asciz "mode-tour: done\n"
