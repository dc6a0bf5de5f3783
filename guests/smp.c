/* Several CPUs: start them, let them count together under the bus lock, send each one an interrupt. */
#include "interrupts.h"

enum {
    MAX_APS = 255, /* as in smp-ap.S */
    TRAMPOLINE = 0x8000,
    INCREMENTS = 1000,

    FW_CFG_SELECT = 0x510,
    FW_CFG_DATA = 0x511,
    FW_CFG_NB_CPUS = 5,

    /* Interrupt commands: delivery mode in bits 8 to 10, assert in bit 14, destination shorthand in bits 18 and 19. */
    ICR_FIXED = 0x4000,
    ICR_INIT = 0x4500,
    ICR_STARTUP = 0x4600,
    ICR_ALL_BUT_SELF = 0xc0000,

    VECTOR_IPI = 0x41,
};

/* In TSC ticks, as no clock has been calibrated: 10 ms and 200 us at 1 GHz, less on a faster CPU, which is enough for
 * virtual hardware; the limit is some seconds at any clock rate. */
#define AFTER_INIT    10000000UL
#define AFTER_STARTUP 200000UL
#define TIME_LIMIT    20000000000UL

extern char trampoline[], trampoline_end[], trampoline_cr3[];

static volatile uint32_t aps_ready, counter, acknowledged;
static volatile uint32_t apic_ids[MAX_APS];

static void increment(volatile uint32_t *value)
{
    __asm__ volatile("lock inc dword ptr %0" : "+m"(*value) : : "cc");
}

static HANDLER void on_ipi(struct frame *frame)
{
    (void)frame;
    increment(&acknowledged);
    apic_write(APIC_EOI, 0);
}

static HANDLER void on_spurious(struct frame *frame)
{
    (void)frame;
}

static void enable_apic(void)
{
    apic_write(APIC_SPURIOUS, APIC_ENABLE | SPURIOUS_VECTOR);
}

/* Each application processor, on its own stack. */
_Noreturn void ap_main(uint32_t number)
{
    load_idt();
    enable_apic();
    apic_ids[number] = apic_read(APIC_ID) >> 24;
    for (int i = 0; i < INCREMENTS; i++)
        increment(&counter);
    increment(&aps_ready);
    for (;;)
        __asm__ volatile("sti\n\thlt" : : : "memory");
}

static void wait_ticks(uint64_t ticks)
{
    uint64_t began = read_tsc();

    while (read_tsc() - began < ticks) {
    }
}

/* Whether *value reached `target` within the time limit. */
static bool wait_for(const volatile uint32_t *value, uint32_t target)
{
    uint64_t began = read_tsc();

    while (*value < target) {
        if (read_tsc() - began > TIME_LIMIT)
            return false;
    }
    return true;
}

static void send_command(uint32_t destination, uint32_t command)
{
    apic_write(APIC_ICR_HIGH, destination << 24);
    apic_write(APIC_ICR_LOW, command);
    while (apic_read(APIC_ICR_LOW) & APIC_ICR_BUSY) {
    }
}

static uint32_t cpu_count(void)
{
    uint32_t count;

    outw(FW_CFG_SELECT, FW_CFG_NB_CPUS);
    count = inb(FW_CFG_DATA);
    count |= (uint32_t)inb(FW_CFG_DATA) << 8;
    if (count == 0 || count > MAX_APS + 1)
        fail("fw_cfg names no usable number of CPUs");
    return count;
}

static void start_aps(void)
{
    uint64_t cr3;

    __asm__ volatile("mov %0, cr3" : "=r"(cr3));
    for (long i = 0; i < trampoline_end - trampoline; i++)
        ((volatile char *)TRAMPOLINE)[i] = trampoline[i];
    *(volatile uint32_t *)(TRAMPOLINE + (trampoline_cr3 - trampoline)) = (uint32_t)cr3;
    send_command(0, ICR_ALL_BUT_SELF | ICR_INIT);
    wait_ticks(AFTER_INIT);
    /* Twice, as the SDM has it: the second is for a CPU that missed the first, the others ignore it. */
    for (int i = 0; i < 2; i++) {
        send_command(0, ICR_ALL_BUT_SELF | ICR_STARTUP | TRAMPOLINE >> 12);
        wait_ticks(AFTER_STARTUP);
    }
}

static void put_result(const char *before, uint32_t value, const char *after)
{
    put_string(before);
    put_decimal(value);
    put_string(after);
}

void guest_main(void)
{
    uint32_t cpus = cpu_count();

    set_gate(VECTOR_IPI, on_ipi);
    set_gate(SPURIOUS_VECTOR, on_spurious);
    load_idt();
    enable_apic();
    start_aps();
    if (!wait_for(&aps_ready, cpus - 1)) {
        put_result("smp: only ", aps_ready + 1, " CPUs online\n");
        fail("not every CPU came up in time");
    }
    put_result("smp: ", aps_ready + 1, " CPUs online\n");
    put_result("smp: counter = ", counter, "\n");
    if (counter != (cpus - 1) * INCREMENTS)
        fail("increments were lost");
    for (uint32_t i = 0; i < cpus - 1; i++)
        send_command(apic_ids[i], ICR_FIXED | VECTOR_IPI);
    if (!wait_for(&acknowledged, cpus - 1))
        fail("not every CPU acknowledged its IPI in time");
    put_result("smp: IPIs acknowledged: ", acknowledged, "\n");
    put_string("smp: done\n");
    power_off();
}
