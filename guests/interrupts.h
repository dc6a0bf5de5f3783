/* For the 64-bit C guests: interrupt descriptor table, local APIC, waiting. A handler is a function with gcc's
 * `interrupt` attribute. */
#ifndef GUESTS_INTERRUPTS_H
#define GUESTS_INTERRUPTS_H

#include "lib.h"

#define HANDLER __attribute__((interrupt))

enum {
    CODE64 = 0x08, /* of entry64.S */

    /* Local APIC registers (SDM vol. 3, "Local APIC Register Address Map"), as offsets. */
    APIC_ID = 0x20,
    APIC_EOI = 0xb0,
    APIC_SPURIOUS = 0xf0,
    APIC_ICR_LOW = 0x300,
    APIC_ICR_HIGH = 0x310,
    APIC_LVT_TIMER = 0x320,
    APIC_LVT_LINT0 = 0x350,
    APIC_TIMER_INITIAL = 0x380,
    APIC_TIMER_DIVIDE = 0x3e0,

    APIC_ENABLE = 0x100,  /* in the spurious vector register */
    APIC_EXTINT = 0x700,  /* delivery mode of LINT0: the 8259 supplies the vector */
    APIC_ICR_BUSY = 1 << 12,

    SPURIOUS_VECTOR = 0xff,
};

#define APIC_BASE 0xfee00000UL

struct frame; /* what the CPU pushed; no handler here looks at it */

struct gate {
    uint16_t offset_low, selector;
    uint8_t ist, type;
    uint16_t offset_middle;
    uint32_t offset_high, reserved;
};

static struct gate idt[256];

static inline void set_gate(uint8_t vector, void (*handler)(struct frame *))
{
    uintptr_t offset = (uintptr_t)handler;

    idt[vector] = (struct gate){
        .offset_low = (uint16_t)offset,
        .selector = CODE64,
        .type = 0x8e, /* present, interrupt gate */
        .offset_middle = (uint16_t)(offset >> 16),
        .offset_high = (uint32_t)(offset >> 32),
    };
}

static inline void load_idt(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, (uintptr_t)idt};

    __asm__ volatile("lidt %0" : : "m"(pointer), "m"(idt));
}

static inline uint32_t apic_read(uint32_t offset)
{
    return *(volatile uint32_t *)(APIC_BASE + offset);
}

static inline void apic_write(uint32_t offset, uint32_t value)
{
    *(volatile uint32_t *)(APIC_BASE + offset) = value;
}

static inline uint64_t read_tsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

/* Sleep until an interrupt has made *counter reach `target`. Interrupts are on only from sti's shadow on: one that
 * arrives after the check still ends the hlt. */
static inline void sleep_until(const volatile uint32_t *counter, uint32_t target)
{
    while (*counter < target)
        __asm__ volatile("sti\n\thlt\n\tcli" : : : "memory");
}

#endif
