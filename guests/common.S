/* Shared by the assembly guests: serial output and the ways to end a run. Defines macros only, so that each guest
 * decides in which mode (.code16, .code32, .code64) and in which section the code lands. */

/* Preprocessor constants, not .set: a .set symbol would land in the symbol table and pass for an address. */
#define COM1_DATA       0x3f8
#define COM1_LSR        0x3fd           /* line status register */
#define LSR_DR          0x01            /* a received byte waits */
#define LSR_THRE        0x20            /* transmit holding register empty */
#define DEBUG_EXIT_PORT 0xf4
#define PM1A_CONTROL    0x604           /* ACPI PM1a control block */
#define PM1A_S5         0x2000          /* SLP_EN with sleep type 0, which is S5 on this platform */

        .intel_syntax noprefix

/* Define \name: print the NUL-terminated string at (R/E)SI. lodsb, in and out encode alike in every mode, so one text
 * serves all. Clobbers AX, DX and SI. */
.macro DEFINE_PUTS name
\name:
11:     lodsb
        test    al, al
        jz      13f
        mov     ah, al
        mov     dx, COM1_LSR
12:     in      al, dx
        test    al, LSR_THRE
        jz      12b
        mov     al, ah
        mov     dx, COM1_DATA
        out     dx, al
        jmp     11b
13:     ret
.endm

/* Stop for good. Interrupts are off, so a machine without the port that should have ended the run still sees a halt. */
.macro HALT_FOREVER
14:     cli
        hlt
        jmp     14b
.endm

.macro POWER_OFF
        mov     dx, PM1A_CONTROL
        mov     ax, PM1A_S5
        out     dx, ax
        HALT_FOREVER
.endm

.macro DEBUG_EXIT value
        mov     dx, DEBUG_EXIT_PORT
        mov     al, \value
        out     dx, al
        HALT_FOREVER
.endm
