"""A device in ten lines: an adder behind two I/O ports, and a guest that uses it.

Run: python examples/ten_line_device.py
"""

from pyvmm import Action, Device, Machine


class Adder(Device):
    name = "adder"
    total = 0

    def write(self, offset: int, size: int, value: int) -> Action | None:
        self.total += value
        return None

    def read(self, offset: int, size: int) -> int:
        return self.total


# mov al, 40; out 0x10, al; mov al, 2; out 0x10, al; in al, 0x10; mov [0x500], al; cli; hlt
GUEST = bytes.fromhex("b028 e610 b002 e610 e410 a20005 fa f4")

with Machine("1M") as vm:
    vm.attach(Adder(), pio=0x10)
    vm.load(GUEST, mode="real")
    print(vm.run(timeout=5))
    print("the guest read", vm.memory.read_u8(0x500))
