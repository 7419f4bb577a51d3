"""Configuration space and BAR0 as firmware, QEMU and cloud-hypervisor use them."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.nvme import ids
from shadowbell.pci import PciFunction, vector_count

CONFIG = 7


class Recorder:
    """A controller and an engine that write down what reaches them."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, bytes]] = []
        self.resets = 0

    def read_register(self, offset: int, length: int) -> bytes:
        return bytes((offset + i) & 0xFF for i in range(length))

    def write_register(self, offset: int, data: bytes) -> None:
        self.seen.append(("register", offset, data))

    def doorbell_write(self, offset: int, data: bytes) -> None:
        self.seen.append(("doorbell", offset, data))

    def reset(self, *, power_loss: bool = False) -> None:
        self.resets += 1


def make(interrupts: str = "msix", vectors: int = 65) -> tuple[PciFunction, Recorder]:
    device = Recorder()
    function = PciFunction(
        device,
        device,
        interrupts=interrupts,  # type: ignore[arg-type]
        vectors=vectors,
        serial="SB1",
    )
    return function, device


def read(function: PciFunction, offset: int, layout: str) -> int:
    return int(
        struct.unpack(layout, function.region_read(CONFIG, offset, struct.calcsize(layout)))[0]
    )


def capabilities(function: PciFunction) -> dict[int, int]:
    """Id to offset, walked a byte at a time as cloud-hypervisor does."""
    assert read(function, 0x06, "<H") & 0x10
    found: dict[int, int] = {}
    at = read(function, 0x34, "<B")
    while at:
        assert at % 4 == 0
        assert at not in found.values()
        found[read(function, at, "<B")] = at
        at = read(function, at + 1, "<B")
    return found


def test_header() -> None:
    function, _ = make()
    assert read(function, 0x00, "<H") == ids.PCI_VENDOR_ID
    assert read(function, 0x02, "<H") == ids.PCI_DEVICE_ID
    assert function.region_read(CONFIG, 0x09, 3) == b"\x02\x08\x01"
    assert read(function, 0x0E, "<B") == 0
    assert read(function, 0x30, "<I") == 0
    assert read(function, 0x3D, "<B") == 0
    assert len(function.region_read(CONFIG, 0, 4096)) == 4096
    assert [function.region_size(i) for i in range(9)] == [0x4000, 0, 0, 0, 0, 0, 0, 4096, 0]


def test_bar_sizing() -> None:
    function, _ = make()
    for bar in range(6):
        function.region_write(CONFIG, 0x10 + 4 * bar, b"\xff" * 4)
    function.region_write(CONFIG, 0x30, b"\xff" * 4)
    assert read(function, 0x10, "<Q") == 0xFFFFFFFFFFFFC004
    assert function.region_read(CONFIG, 0x18, 16) == bytes(16)
    assert read(function, 0x30, "<I") == 0
    function.region_write(CONFIG, 0x10, struct.pack("<Q", 0xFEB0_1234_5000))
    assert read(function, 0x10, "<Q") == 0xFEB0_1234_4004


def test_command_register() -> None:
    function, device = make()
    function.region_write(CONFIG, 4, b"\xff\xff\xff\xff")
    assert read(function, 4, "<H") == 0x0546
    assert read(function, 6, "<H") == 0x0010
    function.region_write(CONFIG, 4, b"\0\0")
    assert read(function, 4, "<H") == 0
    assert device.resets == 0, "bus master off is no reset"


def test_msix_capability_and_table() -> None:
    function, device = make(vectors=65)
    at = capabilities(function)[0x11]
    assert capabilities(function).keys() == {0x01, 0x10, 0x11}
    assert read(function, at + 2, "<H") == 64
    assert read(function, at + 4, "<I") == 0x2000
    assert read(function, at + 8, "<I") == 0x3000
    function.region_write(CONFIG, at + 2, b"\xff\xff")
    assert read(function, at + 2, "<H") == 0xC040
    assert function.irq_counts() == (0, 0, 65, 1, 0)

    assert function.region_read(0, 0x2000, 16) == bytes(12) + b"\1\0\0\0", "masked at first"
    entry = struct.pack("<IIII", 0xFEE00003, 1, 0x41, 0xFFFFFFFF)
    function.region_write(0, 0x2000 + 64 * 16, entry)
    assert function.region_read(0, 0x2000 + 64 * 16, 16) == struct.pack(
        "<IIII", 0xFEE00000, 1, 0x41, 1
    )
    function.region_write(0, 0x2000 + 65 * 16, entry)
    assert function.region_read(0, 0x2000 + 65 * 16, 16) == bytes(16)
    function.region_write(0, 0x3000, b"\xff" * 8)
    assert function.region_read(0, 0x3000, 8) == bytes(8)
    assert device.seen == []


def test_msi_capability() -> None:
    function, _ = make("msi", 32)
    at = capabilities(function)[0x05]
    assert capabilities(function).keys() == {0x01, 0x05, 0x10}
    assert read(function, at + 2, "<H") == 0x80 | 5 << 1
    assert function.irq_counts() == (0, 32, 0, 1, 0)
    function.region_write(CONFIG, at + 2, b"\xff" * 12)
    assert read(function, at + 2, "<H") == 0x80 | 5 << 1 | 0x71
    assert function.region_read(CONFIG, at + 4, 10) == b"\xfc" + b"\xff" * 9
    assert read(function, at + 14, "<H") == 0, "the mask has an end"
    assert function.region_read(0, 0x2000, 0x1000) == bytes(0x1000)


@pytest.mark.parametrize(
    ("interrupts", "queues", "vectors"),
    [("msix", 1, 2), ("msix", 128, 129), ("msi", 1, 2), ("msi", 2, 4), ("msi", 64, 32)],
)
def test_vector_count(interrupts: str, queues: int, vectors: int) -> None:
    assert vector_count(interrupts, queues) == vectors  # type: ignore[arg-type]


def test_power_states() -> None:
    function, _ = make()
    at = capabilities(function)[0x01] + 4
    assert read(function, at, "<H") == 8
    function.region_write(CONFIG, at, b"\3\0")
    assert read(function, at, "<H") == 11
    function.region_write(CONFIG, at, b"\1\0")
    assert read(function, at, "<H") == 11, "D1 is not there: stay"
    function.region_write(CONFIG, at, b"\0\0")
    assert read(function, at, "<H") == 8


def test_express_and_function_level_reset() -> None:
    function, device = make()
    at = capabilities(function)[0x10]
    assert read(function, at + 2, "<H") == 2
    assert read(function, at + 4, "<I") & 1 << 28
    assert read(function, at + 0x0C, "<I") & 0x3FF == read(function, at + 0x12, "<H") == 0x43
    function.region_write(CONFIG, 4, b"\6\0")
    function.region_write(CONFIG, at + 8, b"\x10\x28")
    assert device.resets == 0
    function.region_write(CONFIG, at + 8, b"\x10\xa8")
    assert device.resets == 1
    assert read(function, at + 8, "<H") == 0x2810
    assert read(function, 4, "<H") == 0, "registers are back at their first values"
    function.region_write(CONFIG, at + 9, b"\x80")
    function.region_write(CONFIG, at + 6, b"\0\0\0\x80")
    assert device.resets == 3, "whatever the width"
    function.region_write(CONFIG, at + 0x28, b"\0\x80")
    function.region_write(CONFIG, at + 6, b"\0\x80")
    assert device.resets == 3


def test_serial_number_is_stable() -> None:
    first, second = make()[0], make()[0]
    assert read(first, 0x100, "<I") == 0x00010003
    assert first.region_read(CONFIG, 0x104, 8) == second.region_read(CONFIG, 0x104, 8) != bytes(8)


def test_bar_pages_go_to_their_owners() -> None:
    function, device = make()
    assert function.region_read(0, 0x14, 4) == b"\x14\x15\x16\x17"
    function.region_write(0, 0x14, b"\1\0\x46\0")
    function.region_write(0, 0x28, b"12345678")
    function.region_write(0, 0x1008, b"\5\0\0\0")
    assert device.seen == [
        ("register", 0x14, b"\1\0\x46\0"),
        ("register", 0x28, b"12345678"),
        ("doorbell", 0x1008, b"\5\0\0\0"),
    ]
    assert function.region_read(0, 0x1000, 0x1000) == bytes(0x1000)


def test_odd_register_writes() -> None:
    function, device = make()
    function.region_write(0, 0x24, b"aaaabbbbcccc")
    assert device.seen == [
        ("register", 0x24, b"aaaa"),
        ("register", 0x28, b"bbbb"),
        ("register", 0x2C, b"cccc"),
    ]
    device.seen.clear()
    for offset, data in [(0x14, b"1"), (0x14, b"12"), (0x15, b"1234"), (0x14, b"12345")]:
        function.region_write(0, offset, data)
    assert device.seen == []


def test_ranges_over_pages() -> None:
    function, device = make()
    data = function.region_read(0, 0xFFC, 0x3004)
    assert data[:4] == b"\xfc\xfd\xfe\xff"
    assert data[4:0x1004] == bytes(0x1000)
    assert data[0x1004:0x1014] == bytes(12) + b"\1\0\0\0"
    assert len(data) == 0x3004
    function.region_write(0, 0xFFC, b"AAAABBBB")
    assert device.seen == [("register", 0xFFC, b"AAAA"), ("doorbell", 0x1000, b"BBBB")]


@given(st.integers(0, 4095), st.binary(min_size=1, max_size=64))
def test_any_config_write_leaves_identity_alone(offset: int, data: bytes) -> None:
    function, _ = make()
    before = capabilities(function)
    function.region_write(CONFIG, offset, data[: 4096 - offset])
    assert read(function, 0, "<H") == ids.PCI_VENDOR_ID
    assert capabilities(function) == before
