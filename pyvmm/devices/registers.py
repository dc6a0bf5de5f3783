"""Device registers, declared once: the model takes its masks from here, traces and dumps take their words from here.

A register is a name, an offset, a width and its bit fields. Several may share an offset, as chips do: one that is read
and one that is written, or two that a bank bit chooses between.

    LSR = Register("LSR", 5, 1, "r", Field("DR", 0), Field("THRE", 5), Field("TEMT", 6))
    LSR["THRE"]          # 0x20
    LSR.describe(0x60)   # "LSR=0x60 THRE TEMT"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_ACCESS = frozenset(("r", "w", "rw", "w1c"))


class Field:
    """A range of bits with a name.

    Attributes:
        name: as the data sheet has it.
        low: lowest bit.
        width: number of bits.
        mask: the bits in place.
        access: "r", "w", "rw", "w1c" (a written one clears), or None: as the register.
        names: words for some of the values.
    """

    __slots__ = ("access", "low", "mask", "name", "names", "width")

    def __init__(
        self,
        name: str,
        high: int,
        low: int | None = None,
        access: str | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self.name = name
        self.low = high if low is None else low
        self.width = high - self.low + 1
        if self.low < 0 or self.width < 1:
            raise ValueError(f"field {name}: bits {high} to {self.low} are no range")
        if access is not None and access not in _ACCESS:
            raise ValueError(f"field {name}: access {access!r} is none of r, w, rw, w1c")
        self.mask = ((1 << self.width) - 1) << self.low
        self.access = access
        self.names = dict(names or {})

    def get(self, value: int) -> int:
        """Return this field's number out of a register's `value`."""
        return (value & self.mask) >> self.low

    def describe(self, value: int) -> str:
        """Return the field in words: its name for a set bit, name=number for more bits, "" for a bit that is clear."""
        number = self.get(value)
        if self.names:
            return f"{self.name}={self.names.get(number, hex(number))}"
        if self.width == 1:
            return self.name if number else ""
        return f"{self.name}={number:#x}"


def bits(*names: str, start: int = 0) -> tuple[Field, ...]:
    """Return one-bit fields of these names, ascending from bit `start`."""
    return tuple(Field(name, bit) for bit, name in enumerate(names, start))


class Register:
    """A named register of 1, 2, 4 or 8 bytes; `register["FIELD"]` is a field's mask.

    Attributes:
        name: as the data sheet has it.
        offset: of its first byte in the device's window.
        size: in bytes.
        access: "r", "w", "rw" or "w1c", for the bits of fields that do not say otherwise.
        fields: ascending by bit.
        bank: which of several banks that share offsets; "" is all of them.
        declared: mask of all bits that belong to a field; the full width if there are no fields.
    """

    __slots__ = ("_by_name", "_clears", "_writable", "access", "bank", "declared", "fields", "name", "offset", "size")

    def __init__(self, name: str, offset: int, size: int, access: str, *fields: Field, bank: str = "") -> None:
        if access not in _ACCESS:
            raise ValueError(f"register {name}: access {access!r} is none of r, w, rw, w1c")
        self.name = name
        self.offset = offset
        self.size = size
        self.access = access
        self.bank = bank
        self.fields = tuple(sorted(fields, key=lambda field: field.low))
        self._by_name = {field.name: field for field in fields}
        full = (1 << (size * 8)) - 1
        seen = 0
        for field in fields:
            if field.mask & seen or field.mask & ~full:
                raise ValueError(f"register {name}: field {field.name} overlaps another or leaves the register")
            seen |= field.mask
        if len(self._by_name) != len(fields):
            raise ValueError(f"register {name}: two fields share a name")
        self.declared = seen if fields else full
        self._writable = self._mask("rw") | self._mask("w")
        self._clears = self._mask("w1c")

    def _mask(self, access: str) -> int:
        if not self.fields:
            return self.declared if self.access == access else 0
        return sum(field.mask for field in self.fields if (field.access or self.access) == access)

    def __getitem__(self, field: str) -> int:
        return self._by_name[field].mask

    def field(self, name: str) -> Field:
        """Return the field called `name`; raises KeyError if there is none."""
        return self._by_name[name]

    def written(self, old: int, value: int) -> int:
        """Return the contents after the guest writes `value` over `old`, by the access of each declared bit."""
        return (old & ~self._writable & ~(value & self._clears)) | (value & self._writable)

    def describe(self, value: int) -> str:
        """Return `value` in words, as "LSR=0x60 THRE TEMT"; bits of no field come last, as "+0x80"."""
        words = [f"{self.name}={value:#0{self.size * 2 + 2}x}"]
        words += [word for field in self.fields if (word := field.describe(value))]
        rest = value & ~self.declared
        if rest:
            words.append(f"+{rest:#x}")
        return " ".join(words)

    def __repr__(self) -> str:
        return f"<Register {self.name} at {self.offset:#x}, {self.size} bytes, {self.access}>"


class RegisterMap:
    """The registers of a device; `registers["LSR"]` finds one by name, `describe` puts an access into words."""

    def __init__(self, *registers: Register) -> None:
        self._registers = registers
        self._by_name = {register.name: register for register in registers}
        if len(self._by_name) != len(registers):
            raise ValueError("two registers share a name")

    def __iter__(self) -> Iterator[Register]:
        return iter(self._registers)

    def __getitem__(self, name: str) -> Register:
        return self._by_name[name]

    def find(self, offset: int, write: bool = False, bank: str = "") -> Register | None:
        """Return the register that an access to `offset` in this direction reaches while `bank` is selected."""
        for register in self._registers:
            if (
                register.offset == offset
                and register.bank in ("", bank)
                and (register.access != "r" if write else register.access != "w")
            ):
                return register
        return None

    def describe(self, offset: int, value: int, write: bool = False, bank: str = "") -> str:
        """Return an access in words; an offset without a register gives "+0x5=0x60"."""
        register = self.find(offset, write, bank)
        return f"+{offset:#x}={value:#x}" if register is None else register.describe(value)

    def dump(self, values: Mapping[str, int]) -> str:
        """Return one line a register for the registers named in `values`, in declared order."""
        return "\n".join(reg.describe(values[reg.name]) for reg in self._registers if reg.name in values)
