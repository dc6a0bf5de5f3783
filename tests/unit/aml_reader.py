"""A reader of AML and ACPI tables for tests, written from the specification and not from the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Node:
    """A scope or a device: its path and what it holds, names as {path: value}."""

    kind: str
    path: str
    names: dict[str, Any]
    children: list[Node]


class Reader:
    """Reads a term list byte by byte; whatever it does not know is an error."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        """Take one byte."""
        value = self.data[self.at]
        self.at += 1
        return value

    def take(self, size: int) -> bytes:
        """Take `size` bytes, all of them."""
        part = self.data[self.at : self.at + size]
        assert len(part) == size, "the bytes end too soon"
        self.at += size
        return part

    def package_end(self) -> int:
        """Take a PkgLength and return where the package ends."""
        start = self.at
        lead = self.byte()
        follow = lead // 64
        if follow == 0:
            length = lead % 64
        else:
            assert lead & 0x30 == 0, "reserved bits of a long PkgLength"
            length = lead % 16
            for number in range(follow):
                length += self.byte() * 2 ** (4 + 8 * number)
        return start + length

    def name(self) -> str:
        """Take a NameString; trailing underscores of segments go."""
        prefix = ""
        while self.data[self.at] in b"\\^":
            prefix += chr(self.byte())
        lead = self.data[self.at]
        count = 1
        if lead == 0x00:
            self.at += 1
            count = 0
        elif lead == 0x2E:
            self.at += 1
            count = 2
        elif lead == 0x2F:
            self.at += 1
            count = self.byte()
        segments = [self.take(4).decode("ascii") for _ in range(count)]
        for segment in segments:
            assert segment[0] == "_" or segment[0].isupper(), segment
            assert all(letter == "_" or letter.isdigit() or letter.isupper() for letter in segment)
        return prefix + ".".join(segment.rstrip("_") or "_" for segment in segments)

    def value(self) -> Any:
        """Take a data object: number, text, bytes or list."""
        lead = self.byte()
        if lead in (0x00, 0x01):
            return lead
        if lead in (0x0A, 0x0B, 0x0C, 0x0E):
            size = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[lead]
            return sum(byte << 8 * place for place, byte in enumerate(self.take(size)))
        if lead == 0x0D:
            text = self.data[self.at : self.data.index(0, self.at)]
            self.at += len(text) + 1
            return text.decode("ascii")
        if lead == 0x11:
            end = self.package_end()
            size = self.value()
            content = self.take(end - self.at)
            assert len(content) == size, "a buffer's two sizes"
            return content
        assert lead == 0x12, f"data object {lead:#x}"
        end = self.package_end()
        elements = [self.value() for _ in range(self.byte())]
        assert self.at == end
        return elements

    def terms(self, end: int) -> tuple[dict[str, Any], list[Node]]:
        """Take terms up to `end`, exactly."""
        names: dict[str, Any] = {}
        children = []
        while self.at < end:
            lead = self.byte()
            if lead == 0x08:
                path = self.name()
                assert path not in names, f"{path} twice"
                names[path] = self.value()
                continue
            kind = {0x10: "scope", 0x5B: "device"}[lead]
            if kind == "device":
                assert self.byte() == 0x82
            stop = self.package_end()
            path = self.name()
            children.append(Node(kind, path, *self.terms(stop)))
        assert self.at == end, "a package ends inside a term"
        return names, children


def read_aml(data: bytes) -> Node:
    """Read a whole term list; its root is a scope."""
    return Node("scope", "\\", *Reader(data).terms(len(data)))


def read_resources(template: bytes) -> list[tuple[str, tuple[int, ...]]]:
    """Read a resource template: each item's kind with its numbers; the end tag must be there and be last."""
    items: list[tuple[str, tuple[int, ...]]] = []
    at = 0
    while True:
        lead = template[at]
        if lead & 0x80:
            size = int.from_bytes(template[at + 1 : at + 3], "little")
            body = template[at + 3 : at + 3 + size]
            at += 3 + size
        else:
            size = lead & 7
            body = template[at + 1 : at + 1 + size]
            at += 1 + size
        assert len(body) == size

        def number(first: int, width: int, body: bytes = body) -> int:
            return int.from_bytes(body[first : first + width], "little")

        kind = lead if lead & 0x80 else lead >> 3
        if kind == 0x0F:
            assert at == len(template) and body == b"\0"
            return items
        if kind == 0x08:
            assert size == 7 and body[0] == 1 and number(1, 2) == number(3, 2)
            items.append(("io", (number(1, 2), body[6])))
        elif kind == 0x04:
            mask = number(0, 2)
            assert size == 2 and mask.bit_count() == 1
            items.append(("irq", (mask.bit_length() - 1,)))
        elif kind == 0x86:
            assert size == 9 and body[0] == 1
            items.append(("memory", (number(1, 4), number(5, 4))))
        elif kind == 0x8A:
            assert size == 43 and tuple(body[:3]) == (0, 0b1101, 1)
            assert number(3, 8) == number(27, 8) == 0 and number(19, 8) - number(11, 8) + 1 == number(35, 8)
            items.append(("memory", (number(11, 8), number(35, 8))))
        else:
            assert kind == 0x89 and size == 6 and body[1] == 1
            assert body[0] == 0b1001, "consumer, level, active high, shared"
            items.append(("interrupt", (number(2, 4),)))


def eisa(value: int) -> str:
    """Return the text of a compressed EISA identifier."""
    word = int.from_bytes(value.to_bytes(4, "little"), "big")
    return "".join(chr(0x40 + (word >> shift & 31)) for shift in (26, 21, 16)) + f"{word & 0xFFFF:04X}"
