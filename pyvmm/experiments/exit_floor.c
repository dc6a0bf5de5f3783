/* The floor of an exit to user space: the least that a C program can do around KVM_RUN.
 *
 * usage: exit_floor pio|mmio EXITS
 * For each line on stdin, takes EXITS exits and prints the seconds of CPU time that they took. The VM is the one that pyvmm makes (interrupt controller, PIT, one slot), the guest the
 * same real-mode loop, so the only difference is what happens between two KVM_RUNs: here, one comparison.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum { MEMORY = 1 << 20, START = 0x1000, WARM_UP = 1000 };

static void need(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	static const uint8_t pio_loop[] = {0xe6, 0x10, 0xeb, 0xfc};        /* 1: out 0x10, al; jmp 1b */
	static const uint8_t mmio_loop[] = {0xa2, 0x00, 0x00, 0xeb, 0xfb}; /* 1: mov [0], al; jmp 1b */
	struct kvm_pit_config pit = {0};
	struct kvm_regs regs = {.rip = START, .rflags = 2};
	struct kvm_sregs sregs;
	int mmio, system, vm, cpu;
	unsigned reason;
	struct kvm_run *run;
	uint8_t *memory;
	double began;
	char line[16];
	long exits;

	if (argc != 3 || (strcmp(argv[1], "pio") && strcmp(argv[1], "mmio")))
		return 2;
	mmio = !strcmp(argv[1], "mmio");
	exits = atol(argv[2]);

	need((system = open("/dev/kvm", O_RDWR | O_CLOEXEC)) >= 0, "/dev/kvm");
	need((vm = ioctl(system, KVM_CREATE_VM, 0)) >= 0, "KVM_CREATE_VM");
	ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	need(ioctl(vm, KVM_CREATE_IRQCHIP, 0) == 0, "KVM_CREATE_IRQCHIP");
	need(ioctl(vm, KVM_CREATE_PIT2, &pit) == 0, "KVM_CREATE_PIT2");
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(memory != MAP_FAILED, "mmap");
	struct kvm_userspace_memory_region slot = {.memory_size = MEMORY, .userspace_addr = (uintptr_t)memory};
	need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
	need((cpu = ioctl(vm, KVM_CREATE_VCPU, 0)) >= 0, "KVM_CREATE_VCPU");
	run = mmap(NULL, ioctl(system, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
	need(run != MAP_FAILED, "mmap of the vCPU");

	memcpy(memory + START, mmio ? mmio_loop : pio_loop, mmio ? sizeof(mmio_loop) : sizeof(pio_loop));
	need(ioctl(cpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	if (mmio)
		sregs.ds.base = 16 << 20; /* past the slot */
	need(ioctl(cpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	need(ioctl(cpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");

	reason = mmio ? KVM_EXIT_MMIO : KVM_EXIT_IO;
	for (long i = 0; i < WARM_UP; i++)
		ioctl(cpu, KVM_RUN, 0);
	while (fgets(line, sizeof(line), stdin)) {
		began = now();
		for (long i = 0; i < exits; i++) {
			ioctl(cpu, KVM_RUN, 0);
			if (run->exit_reason != reason) {
				fprintf(stderr, "exit reason %u\n", run->exit_reason);
				return 1;
			}
		}
		printf("%.9f\n", now() - began);
		fflush(stdout);
	}
	return 0;
}
