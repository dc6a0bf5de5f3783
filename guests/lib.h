/* Shared by the C guests, 32-bit and 64-bit: port I/O, serial output, ways to end a run. Header only: no guest needs
 * a library, and unused functions vanish. */
#ifndef GUESTS_LIB_H
#define GUESTS_LIB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    COM1 = 0x3f8,
    COM1_LSR = COM1 + 5,
    LSR_THRE = 0x20,       /* transmit holding register empty */
    DEBUG_EXIT = 0xf4,
    PM1A_CONTROL = 0x604,  /* ACPI PM1a control block */
    PM1A_S5 = 0x2000,      /* SLP_EN with sleep type 0, which is S5 on this platform */
};

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("out %1, %0" : : "a"(value), "Nd"(port) : "memory");
}

static inline void outw(uint16_t port, uint16_t value)
{
    __asm__ volatile("out %1, %0" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("in %0, %1" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void put_char(char c)
{
    while (!(inb(COM1_LSR) & LSR_THRE)) {
    }
    outb(COM1, (uint8_t)c);
}

static inline void put_string(const char *s)
{
    while (*s)
        put_char(*s++);
}

/* All sixteen digits at every width: lines of a table stay aligned. */
static inline void put_hex(uint64_t value)
{
    put_string("0x");
    for (int shift = 60; shift >= 0; shift -= 4)
        put_char("0123456789abcdef"[(value >> shift) & 0xf]);
}

/* 32 bits only: 64-bit division would need libgcc in a 32-bit guest. */
static inline void put_decimal(uint32_t value)
{
    char digits[11];
    char *p = digits + sizeof digits - 1;

    *p = 0;
    do {
        *--p = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    put_string(p);
}

/* Interrupts are off, so a machine without the port that should have ended the run still sees a halt. */
static inline _Noreturn void halt_forever(void)
{
    for (;;)
        __asm__ volatile("cli\n\thlt" : : : "memory");
}

static inline _Noreturn void power_off(void)
{
    outw(PM1A_CONTROL, PM1A_S5);
    halt_forever();
}

/* Report on the serial port why the guest gives up, then debug-exit with 1. */
static inline _Noreturn void fail(const char *why)
{
    put_string("FAIL: ");
    put_string(why);
    put_char('\n');
    outb(DEBUG_EXIT, 1);
    halt_forever();
}

#endif
