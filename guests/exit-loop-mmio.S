/* ELF64: nothing but byte stores to an address with no RAM behind it (the hole below 4 GiB), forever. */
#include "common.S"
        .code64
        .globl  start
start:
        mov     ebx, 0xd0000000
        xor     eax, eax
loop:
        mov     byte ptr [rbx], al
        jmp     loop
