/* Interrupts from three sources: the PIT through the 8259s, the UART's transmitter through IRQ 4, and the local APIC's
 * own timer. Each wait ends only by its interrupt. */
#include "interrupts.h"

enum {
    TICKS = 10,
    PIT_HZ = 100,
    PIT_INPUT_HZ = 1193182,
    PIT_CHANNEL_0 = 0x40,
    PIT_COMMAND = 0x43,
    PIT_RATE_GENERATOR = 0x34, /* channel 0, low then high byte, mode 2 */

    PIC_MASTER = 0x20,
    PIC_SLAVE = 0xa0,
    PIC_INIT = 0x11, /* ICW1: edge triggered, cascaded, ICW4 follows */
    PIC_8086 = 0x01, /* ICW4 */
    PIC_EOI = 0x20,
    IRQ_TIMER = 0,
    IRQ_UART = 4,

    UART_IER = COM1 + 1,
    UART_IIR = COM1 + 2,
    UART_MCR = COM1 + 4,
    IER_THRE = 0x02,
    IIR_ID = 0x07,
    IIR_THRE = 0x02,
    MCR_DTR_RTS = 0x03,
    MCR_OUT2 = 0x08, /* lets the interrupt out of the chip */

    VECTOR_PIC = 0x20, /* IRQ n arrives as VECTOR_PIC + n */
    VECTOR_APIC_TIMER = 0x40,

    APIC_DIVIDE_BY_16 = 0x3,
    APIC_TIMER_COUNT = 1000000,
};

static const char transmission[] = "uart: these bytes leave from the interrupt handler\n";
static const char *next_byte = transmission;
static volatile uint32_t ticks, uart_interrupts, uart_finished, apic_timer_interrupts;

static HANDLER void on_tick(struct frame *frame)
{
    (void)frame;
    ticks++;
    outb(PIC_MASTER, PIC_EOI);
}

/* One byte an interrupt. Reading IIR takes the interrupt away; the next byte's departure brings the next one. */
static HANDLER void on_uart(struct frame *frame)
{
    (void)frame;
    if ((inb(UART_IIR) & IIR_ID) == IIR_THRE) {
        uart_interrupts++;
        if (*next_byte) {
            outb(COM1, (uint8_t)*next_byte++);
        } else {
            outb(UART_IER, 0);
            uart_finished = 1;
        }
    }
    outb(PIC_MASTER, PIC_EOI);
}

static HANDLER void on_apic_timer(struct frame *frame)
{
    (void)frame;
    apic_timer_interrupts++;
    apic_write(APIC_EOI, 0);
}

/* A spurious interrupt wants no end-of-interrupt. */
static HANDLER void on_spurious(struct frame *frame)
{
    (void)frame;
}

static void unmask_only(int irq)
{
    outb(PIC_MASTER + 1, (uint8_t)~(1 << irq));
}

static void mask_all(void)
{
    outb(PIC_MASTER + 1, 0xff);
    outb(PIC_SLAVE + 1, 0xff);
}

static void remap_pics(void)
{
    outb(PIC_MASTER, PIC_INIT);
    outb(PIC_SLAVE, PIC_INIT);
    outb(PIC_MASTER + 1, VECTOR_PIC);
    outb(PIC_SLAVE + 1, VECTOR_PIC + 8);
    outb(PIC_MASTER + 1, 1 << 2); /* ICW3: the slave sits on input 2 ... */
    outb(PIC_SLAVE + 1, 2);       /* ... and knows it */
    outb(PIC_MASTER + 1, PIC_8086);
    outb(PIC_SLAVE + 1, PIC_8086);
    mask_all();
}

static void count_ticks(void)
{
    uint16_t divisor = PIT_INPUT_HZ / PIT_HZ;

    outb(PIT_COMMAND, PIT_RATE_GENERATOR);
    outb(PIT_CHANNEL_0, (uint8_t)divisor);
    outb(PIT_CHANNEL_0, (uint8_t)(divisor >> 8));
    unmask_only(IRQ_TIMER);
    for (uint32_t n = 1; n <= TICKS; n++) {
        sleep_until(&ticks, n);
        put_string("timer: tick ");
        put_decimal(n);
        put_char('\n');
    }
    mask_all();
}

static void transmit_by_interrupt(void)
{
    outb(UART_MCR, MCR_DTR_RTS | MCR_OUT2);
    unmask_only(IRQ_UART);
    outb(UART_IER, IER_THRE); /* the transmitter is empty: this alone raises the first interrupt */
    sleep_until(&uart_finished, 1);
    mask_all();
    outb(UART_MCR, MCR_DTR_RTS);
    /* One interrupt to start, then one for each byte sent. */
    if (uart_interrupts != sizeof transmission)
        fail("the UART raised another number of interrupts than bytes sent");
    put_string("uart: interrupt-driven transmit ok\n");
}

static void fire_apic_timer(void)
{
    apic_write(APIC_TIMER_DIVIDE, APIC_DIVIDE_BY_16);
    apic_write(APIC_LVT_TIMER, VECTOR_APIC_TIMER); /* mode bits zero: one shot */
    apic_write(APIC_TIMER_INITIAL, APIC_TIMER_COUNT);
    sleep_until(&apic_timer_interrupts, 1);
    put_string("apic: one-shot timer ok\n");
}

void guest_main(void)
{
    set_gate(VECTOR_PIC + IRQ_TIMER, on_tick);
    set_gate(VECTOR_PIC + IRQ_UART, on_uart);
    set_gate(VECTOR_PIC + 7, on_spurious);
    set_gate(VECTOR_APIC_TIMER, on_apic_timer);
    set_gate(SPURIOUS_VECTOR, on_spurious);
    load_idt();
    remap_pics();
    apic_write(APIC_SPURIOUS, APIC_ENABLE | SPURIOUS_VECTOR);
    apic_write(APIC_LVT_LINT0, APIC_EXTINT);
    count_ticks();
    transmit_by_interrupt();
    fire_apic_timer();
    put_string("timer: done\n");
    power_off();
}
