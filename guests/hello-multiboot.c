/* Multiboot (version 1) ELF32: print everything that the loader hands over. */
#include "lib.h"

enum {
    LOADER_MAGIC = 0x2badb002,
    HAS_MEMORY = 1 << 0,
    HAS_COMMAND_LINE = 1 << 2,
    HAS_MODULES = 1 << 3,
    HAS_MAP = 1 << 6,
};

/* "Boot information format" of the Multiboot Specification 0.6.96, as far as it is used here. */
struct information {
    uint32_t flags, memory_lower, memory_upper, boot_device, command_line, module_count, modules, symbols[4];
    uint32_t map_length, map;
};

struct module {
    uint32_t start, end, string, reserved;
};

/* `size` does not count itself: the next entry is size + 4 bytes on. */
struct map_entry {
    uint32_t size;
    uint64_t base, length;
    uint32_t type;
} __attribute__((packed));

static void print_map(const struct information *info)
{
    uint32_t at = info->map;
    uint32_t end = info->map + info->map_length;

    while (at < end) {
        const struct map_entry *entry = (const struct map_entry *)at;

        put_string("memory: base ");
        put_hex(entry->base);
        put_string(" length ");
        put_hex(entry->length);
        put_string(" type ");
        put_decimal(entry->type);
        put_char('\n');
        at += entry->size + 4;
    }
}

static void print_modules(const struct information *info)
{
    const struct module *module = (const struct module *)info->modules;

    for (uint32_t i = 0; i < info->module_count; i++, module++) {
        put_string("module: start ");
        put_hex(module->start);
        put_string(" end ");
        put_hex(module->end);
        if (module->string) {
            put_string(" string ");
            put_string((const char *)module->string);
        }
        put_char('\n');
    }
}

void guest_main(uint32_t magic, const struct information *info)
{
    if (magic != LOADER_MAGIC)
        fail("EAX does not hold the multiboot magic");
    put_string("Hello from 32-bit multiboot\n");
    if (info->flags & HAS_COMMAND_LINE) {
        put_string("command line: ");
        put_string((const char *)info->command_line);
        put_char('\n');
    }
    if (info->flags & HAS_MEMORY) {
        put_string("mem_lower: ");
        put_decimal(info->memory_lower);
        put_string(" KiB, mem_upper: ");
        put_decimal(info->memory_upper);
        put_string(" KiB\n");
    }
    if (info->flags & HAS_MAP)
        print_map(info);
    if (info->flags & HAS_MODULES)
        print_modules(info);
    power_off();
}
