/* PVH: print everything that the loader hands over. Layouts: Xen's public header arch-x86/hvm/start_info.h. */
#include "lib.h"

#define START_MAGIC 0x336ec578

struct start_info {
    uint32_t magic, version, flags, module_count;
    uint64_t modules, command_line, rsdp;
    uint64_t map; /* this and what follows: from version 1 on */
    uint32_t map_entries, reserved;
};

struct module {
    uint64_t start, size, command_line, reserved;
};

struct map_entry {
    uint64_t base, length;
    uint32_t type, reserved;
};

/* Everything lies below 4 GiB: the protocol enters without paging. */
static const void *at(uint64_t address)
{
    return (const void *)(uintptr_t)address;
}

static void print_map(const struct start_info *info)
{
    const struct map_entry *entry = at(info->map);

    for (uint32_t i = 0; i < info->map_entries; i++, entry++) {
        put_string("memory: base ");
        put_hex(entry->base);
        put_string(" length ");
        put_hex(entry->length);
        put_string(" type ");
        put_decimal(entry->type);
        put_char('\n');
    }
}

static void print_modules(const struct start_info *info)
{
    const struct module *module = at(info->modules);

    for (uint32_t i = 0; i < info->module_count; i++, module++) {
        put_string("module: start ");
        put_hex(module->start);
        put_string(" end ");
        put_hex(module->start + module->size);
        if (module->command_line) {
            put_string(" string ");
            put_string(at(module->command_line));
        }
        put_char('\n');
    }
}

void guest_main(const struct start_info *info)
{
    if (info->magic != START_MAGIC)
        fail("EBX does not point to an hvm_start_info");
    put_string("Hello from PVH\n");
    if (info->command_line) {
        put_string("command line: ");
        put_string(at(info->command_line));
        put_char('\n');
    }
    if (info->version >= 1)
        print_map(info);
    print_modules(info);
    power_off();
}
