"""A guest built from bytes: 64-bit code that sums an array which NumPy put into its memory.

Run: python examples/guest_from_bytes.py
"""

import numpy as np

from pyvmm import Machine

ARRAY, RESULT, COUNT = 0x200000, 0x300000, 1000

CODE = b"".join(
    [
        b"\xbe" + ARRAY.to_bytes(4, "little"),  # mov esi, ARRAY
        b"\xb9" + COUNT.to_bytes(4, "little"),  # mov ecx, COUNT
        b"\x31\xdb",  # xor ebx, ebx
        b"\x48\x03\x1e",  # 1: add rbx, [rsi]
        b"\x48\x83\xc6\x08",  # add rsi, 8
        b"\xff\xc9",  # dec ecx
        b"\x75\xf5",  # jnz 1b
        b"\x48\x89\x1c\x25" + RESULT.to_bytes(4, "little"),  # mov [RESULT], rbx
        b"\xfa\xf4",  # cli; hlt
    ]
)

with Machine("16M") as vm:
    vm.load(CODE, mode="long")
    numbers = vm.memory.array(ARRAY, COUNT, np.uint64)  # the guest's own memory: no copy
    numbers[:] = np.arange(COUNT)
    print(vm.run(timeout=5))
    print("guest:", vm.memory.read_u64(RESULT), " NumPy:", numbers.sum())
    print("GPA", hex(ARRAY), "is HVA", hex(vm.memory.hva(ARRAY)), "and HPA", hex(vm.memory.hpa(ARRAY) or 0))
