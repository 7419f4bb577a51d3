"""Typed views of the specification's little-endian data structures.

A structure names its fields with the byte offsets of the specification:

    class Example(Structure):
        SIZE = 64
        vid = U16(0)
        sn = Ascii(4, 20)

A field reads from and writes to the structure's buffer, so one class serves the controller, which
fills structures, and the driver, which reads them. Bytes that no field covers stay zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Generic, Self, TypeVar, overload

S = TypeVar("S", bound="Structure")
V = TypeVar("V")


class Structure:
    """A structure of ``SIZE`` bytes, all zero or copied from `data` (longer data is cut).

    Raises ValueError when `data` is shorter than SIZE.
    """

    SIZE: ClassVar[int]
    __slots__ = ("_buffer",)

    def __init__(self, data: bytes | bytearray | memoryview | None = None) -> None:
        if data is not None and len(data) < self.SIZE:
            raise ValueError(f"{type(self).__name__} needs {self.SIZE} bytes, got {len(data)}")
        content = bytearray(self.SIZE) if data is None else bytearray(data[: self.SIZE])
        self._buffer = memoryview(content)

    @classmethod
    def over(cls, buffer: memoryview) -> Self:
        """A view that shares `buffer` (writable, at least SIZE bytes) instead of copying it."""
        view = cls.__new__(cls)
        view._buffer = buffer[: cls.SIZE]
        return view

    def __bytes__(self) -> bytes:
        return bytes(self._buffer)

    def __bool__(self) -> bool:
        """Whether any byte is set."""
        return any(self._buffer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._buffer == other._buffer

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def field_names(cls) -> Iterator[str]:
        """Names of the fields in the order in which the class defines them."""
        return (name for name, value in vars(cls).items() if isinstance(value, Field))

    def __repr__(self) -> str:
        values = ((name, getattr(self, name)) for name in self.field_names())
        shown = (f"{name}={value!r}" for name, value in values if _is_set(value))
        return f"{type(self).__name__}({', '.join(shown)})"


class Field(Generic[V]):
    """A value of `size` bytes at byte `offset` of a structure."""

    __slots__ = ("offset", "size")

    def __init__(self, offset: int, size: int) -> None:
        self.offset = offset
        self.size = size

    @overload
    def __get__(self, obj: None, owner: type[Structure]) -> Self: ...
    @overload
    def __get__(self, obj: Structure, owner: type[Structure]) -> V: ...
    def __get__(self, obj: Structure | None, owner: type[Structure]) -> Self | V:
        if obj is None:
            return self
        return self._decode(obj._buffer[self.offset : self.offset + self.size])

    def __set__(self, obj: Structure, value: V) -> None:
        obj._buffer[self.offset : self.offset + self.size] = self._encode(value)

    def _decode(self, raw: memoryview) -> V:
        raise NotImplementedError

    def _encode(self, value: V) -> bytes:
        raise NotImplementedError


class Uint(Field[int]):
    """An unsigned integer; a value that doesn't fit raises OverflowError."""

    __slots__ = ()

    def _decode(self, raw: memoryview) -> int:
        return int.from_bytes(raw, "little")

    def _encode(self, value: int) -> bytes:
        return value.to_bytes(self.size, "little")


def U8(offset: int) -> Uint:
    """One unsigned byte."""
    return Uint(offset, 1)


def U16(offset: int) -> Uint:
    """A 16-bit unsigned integer."""
    return Uint(offset, 2)


def U32(offset: int) -> Uint:
    """A 32-bit unsigned integer."""
    return Uint(offset, 4)


def U64(offset: int) -> Uint:
    """A 64-bit unsigned integer."""
    return Uint(offset, 8)


def U128(offset: int) -> Uint:
    """A 128-bit unsigned integer."""
    return Uint(offset, 16)


class Raw(Field[bytes]):
    """Bytes as they are; a shorter value is padded with zeros, a longer one raises ValueError."""

    __slots__ = ()

    def _decode(self, raw: memoryview) -> bytes:
        return bytes(raw)

    def _encode(self, value: bytes) -> bytes:
        if len(value) > self.size:
            raise ValueError(f"{len(value)} bytes do not fit into {self.size}")
        return value.ljust(self.size, b"\0")


class Text(Field[str]):
    """Text without its padding; a value that is too long or not encodable raises ValueError."""

    __slots__ = ("encoding", "pad")

    def __init__(self, offset: int, size: int, encoding: str, pad: bytes) -> None:
        super().__init__(offset, size)
        self.encoding = encoding
        self.pad = pad

    def _decode(self, raw: memoryview) -> str:
        return bytes(raw).rstrip(self.pad + b"\0").decode(self.encoding, "replace")

    def _encode(self, value: str) -> bytes:
        encoded = value.encode(self.encoding)
        if len(encoded) > self.size:
            raise ValueError(f"{value!r} is longer than {self.size} bytes")
        return encoded.ljust(self.size, self.pad)


def Ascii(offset: int, size: int) -> Text:
    """An ASCII string, left justified and padded with spaces."""
    return Text(offset, size, "ascii", b" ")


def Utf8(offset: int, size: int) -> Text:
    """A UTF-8 string terminated and padded with NULs (such as an NQN)."""
    return Text(offset, size, "utf-8", b"\0")


class UintList:
    """`count` integers of `width` bytes that live in a structure's buffer."""

    __slots__ = ("_buffer", "_width")

    def __init__(self, buffer: memoryview, width: int) -> None:
        self._buffer = buffer
        self._width = width

    def _at(self, index: int) -> slice:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return slice(index * self._width, (index + 1) * self._width)

    def __len__(self) -> int:
        return len(self._buffer) // self._width

    def __getitem__(self, index: int) -> int:
        return int.from_bytes(self._buffer[self._at(index)], "little")

    def __setitem__(self, index: int, value: int) -> None:
        self._buffer[self._at(index)] = value.to_bytes(self._width, "little")

    def __iter__(self) -> Iterator[int]:
        return (self[index] for index in range(len(self)))

    def __bool__(self) -> bool:
        return any(self._buffer)

    def __repr__(self) -> str:
        return repr(list(self))


class UintArray(Field[UintList]):
    """`count` unsigned integers of `width` bytes each; assign to its elements."""

    __slots__ = ("width",)

    def __init__(self, offset: int, width: int, count: int) -> None:
        super().__init__(offset, width * count)
        self.width = width

    def _decode(self, raw: memoryview) -> UintList:
        return UintList(raw, self.width)


class StructureArray(Field[tuple[S, ...]]):
    """`count` structures, side by side; each is a view, so setting its fields changes the whole."""

    __slots__ = ("kind",)

    def __init__(self, offset: int, kind: type[S], count: int) -> None:
        super().__init__(offset, kind.SIZE * count)
        self.kind: type[S] = kind

    def _decode(self, raw: memoryview) -> tuple[S, ...]:
        step = self.kind.SIZE
        return tuple(self.kind.over(raw[at : at + step]) for at in range(0, self.size, step))


class Bits:
    """Bits `high`:`low` of the unsigned integer field `of`."""

    __slots__ = ("low", "mask", "of")

    def __init__(self, of: Uint, high: int, low: int) -> None:
        self.of = of
        self.low = low
        self.mask = (1 << (high - low + 1)) - 1

    @overload
    def __get__(self, obj: None, owner: type[Structure]) -> Self: ...
    @overload
    def __get__(self, obj: Structure, owner: type[Structure]) -> int: ...
    def __get__(self, obj: Structure | None, owner: type[Structure]) -> Self | int:
        if obj is None:
            return self
        return (self.of.__get__(obj, owner) >> self.low) & self.mask

    def __set__(self, obj: Structure, value: int) -> None:
        if not 0 <= value <= self.mask:
            raise OverflowError(f"{value} does not fit into {self.mask.bit_length()} bits")
        rest = self.of.__get__(obj, type(obj)) & ~(self.mask << self.low)
        self.of.__set__(obj, rest | value << self.low)


def bits(value: int, high: int, low: int) -> int:
    """Bits `high`:`low` of `value`."""
    return (value >> low) & ((1 << (high - low + 1)) - 1)


def _is_set(value: object) -> bool:
    return any(value) if isinstance(value, bytes | tuple) else bool(value)
