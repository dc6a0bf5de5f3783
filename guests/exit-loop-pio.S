/* ELF64: nothing but port writes, forever. Two instructions an exit, so what is measured is the exit. */
#include "common.S"
        .code64
        .globl  start
start:
        xor     eax, eax
loop:
        out     0x10, al
        jmp     loop
