/* Flat binary, real mode: the smallest guest that can never continue. */
#include "common.S"
        .code16
        .globl  start
start:
        HALT_FOREVER
