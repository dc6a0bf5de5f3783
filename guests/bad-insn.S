/* ELF64: one x87 instruction in ring 0. A CPU that runs ring 0 itself does not notice; a KVM that emulates ring 0
 * gives up with an internal error. */
#include "common.S"

        .code64
        .globl  start
start:
        lea     rsp, stack_top[rip]
        lea     rsi, before[rip]
        call    puts
        clts                            /* with CR0.TS and CR0.MP set it would fault instead */
        call    run_fwait
        lea     rsi, after[rip]
        call    puts
        POWER_OFF

        .globl  run_fwait
        .type   run_fwait, @function
run_fwait:
        fwait
        ret
        .size   run_fwait, . - run_fwait

DEFINE_PUTS puts
before: .asciz  "bad-insn: running fwait in ring 0\n"
after:  .asciz  "bad-insn: survived\n"

        .bss
        .balign 16
        .skip   256
stack_top:
