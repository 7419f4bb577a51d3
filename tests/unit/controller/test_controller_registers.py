"""Registers and the state machine of enable, reset and shutdown."""

import time

import pytest
from controller_fakes import ACQ, ASQ, CC_ENABLE, FakeEvent, Host
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowbell.nvme.registers import NSSR_MAGIC, Capabilities

CC, CSTS, NSSR, AQA = 0x14, 0x1C, 0x20, 0x24
RDY, CFS, SHST_PROCESSING, SHST_COMPLETE, NSSRO = 1, 2, 1 << 2, 2 << 2, 1 << 4


@pytest.fixture
def off() -> Host:
    """A host whose controller is not enabled."""
    return Host()


def test_capabilities(off: Host) -> None:
    """Base 2.0, 3.1.3.1: what a host decides by."""
    cap = Capabilities(int.from_bytes(off.controller.read_register(0, 8), "little"))
    assert (cap.mqes, cap.cqr, cap.dstrd, cap.nssrs) == (4095, 1, 0, 1)
    assert (cap.css, cap.mpsmin, cap.mpsmax) == (0x41, 0, 0)
    assert (cap.bps, cap.pmrs, cap.cmbs, cap.crims) == (0, 0, 0, 0)
    assert cap.to == off.read32(0x68)  # CRTO.CRWMT (3.1.3.25) where CAP.CRWMS is set
    assert off.read32(0x08) == 0x00020000


def test_enable_opens_the_admin_queues(off: Host) -> None:
    """Base 2.0, 3.5.1: AQA is 0's based; CSTS.RDY tells that commands are processed."""
    assert off.read32(CSTS) == 0
    off.enable()
    assert off.read32(CSTS) == RDY
    assert off.engine.log[-1] == ("open_admin", ASQ, 32, ACQ, 32)
    assert off.read32(CC) == CC_ENABLE


def test_admin_queue_registers_are_readable_while_enabled(host: Host) -> None:
    """Base 2.0, 3.1.3.8 to 3.1.3.10; some devices shipped without."""
    assert host.read32(AQA) == 0x001F001F
    assert host.controller.read_register(0x28, 16) == bytes.fromhex(
        "0010000000000000 0020000000000000"
    )


@pytest.mark.parametrize("order", [(0x28, 0x2C), (0x2C, 0x28)])
def test_queue_bases_in_two_halves(off: Host, order: tuple[int, int]) -> None:
    """PCIe Transport 1.0, 3.1: a 64-bit register may be written as two dwords."""
    for at in order:
        off.write32(at, 0x12345FFF if at == 0x28 else 0x9)
    assert off.controller.read_register(0x28, 8) == (0x9_1234_5000).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("cc", "aqa"),
    [
        (CC_ENABLE | 1 << 4, 0x001F001F),  # CSS: not an I/O command set we know
        (CC_ENABLE | 7 << 4, 0x001F001F),  # CSS: admin only is not supported
        (CC_ENABLE | 1 << 7, 0x001F001F),  # MPS: 8 KiB pages, above CAP.MPSMAX
        (CC_ENABLE | 1 << 11, 0x001F001F),  # AMS: weighted round robin is not supported
        (CC_ENABLE, 0x001F0000),  # an admin submission queue of one entry
        (CC_ENABLE, 0x0000001F),  # an admin completion queue of one entry
    ],
)
def test_an_unsupported_configuration_is_fatal(off: Host, cc: int, aqa: int) -> None:
    """Base 2.0, 3.1.3.5, 3.1.3.8: never ready; CC.EN = 0 clears it."""
    off.write32(AQA, aqa)
    off.write32(CC, cc)
    assert off.read32(CSTS) == CFS
    off.write32(CC, 0)
    assert off.read32(CSTS) == 0


def test_all_command_sets_may_be_selected(off: Host) -> None:
    """Base 2.0, 3.1.3.5: CC.CSS 110b goes with CAP.CSS bit 6."""
    off.enable(CC_ENABLE | 0b110 << 4)
    assert off.read32(CSTS) == RDY


def test_queues_that_the_engine_refuses_are_fatal(off: Host) -> None:
    off.engine.refuse_admin = True
    off.enable()
    assert off.read32(CSTS) == CFS


def test_page_size_and_arbitration_are_frozen_while_enabled(host: Host) -> None:
    """Base 2.0, 3.1.3.5: CSS, MPS and AMS change only while CC.EN is 0."""
    host.write32(CC, CC_ENABLE | 0x3FF0)
    assert host.read32(CC) == CC_ENABLE
    assert host.read32(CSTS) == RDY


def test_reset_keeps_the_admin_queue_registers(host: Host) -> None:
    """Base 2.0, 3.7.2: CC.EN 1 to 0 deletes queues and keeps AQA, ASQ and ACQ."""
    host.write32(0x0C, 5)
    host.write32(CC, CC_ENABLE & ~1)
    assert host.engine.log[-1] == ("reset",)
    assert host.read32(CSTS) == 0
    assert host.read32(0x0C) == 0
    assert host.read32(AQA) == 0x001F001F
    host.write32(CC, CC_ENABLE)
    assert host.read32(CSTS) == RDY


def test_commands_wait_until_enabled(off: Host) -> None:
    off.send(0x06, cdw10=1)
    assert off.completion() is None


def test_pci_reset_clears_all_registers(host: Host) -> None:
    """Base 2.0, 3.7.2: a Function Level Reset resets AQA, ASQ and ACQ too."""
    host.controller.reset()
    assert host.read32(CC) == 0
    assert host.controller.read_register(CSTS, 0x1C) == bytes(0x1C)


@pytest.mark.parametrize("shn", [0b01, 0b10])
def test_shutdown_flushes(host: Host, shn: int) -> None:
    """Base 2.0, 3.6.1: SHST is complete once all data is safe; normal and abrupt."""
    host.write32(CC, CC_ENABLE | shn << 14)
    assert host.backend.flushes == 1
    assert host.read32(CSTS) == RDY | SHST_COMPLETE
    host.write32(CC, 0)
    assert host.read32(CSTS) == 0


def test_shutdown_that_takes_long_does_not_hold_up_the_registers(host: Host) -> None:
    """Base 2.0, 3.6.1: SHST is processing meanwhile; a register read never waits for the disk."""
    host.backend.gate.clear()
    host.write32(CC, CC_ENABLE | 1 << 14)
    assert host.read32(CSTS) == RDY | SHST_PROCESSING
    host.backend.gate.set()
    deadline = time.monotonic() + 5
    while host.read32(CSTS) != RDY | SHST_COMPLETE:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_shutdown_completes_even_when_the_flush_fails(host: Host) -> None:
    host.backend.error = OSError(5, "Input/output error")
    host.write32(CC, CC_ENABLE | 1 << 14)
    assert host.read32(CSTS) == RDY | SHST_COMPLETE


def test_a_reserved_shutdown_value_is_ignored(host: Host) -> None:
    host.write32(CC, CC_ENABLE | 3 << 14)
    assert host.read32(CSTS) == RDY


def test_subsystem_reset(host: Host) -> None:
    """Base 2.0, 3.7.1: "NVMe" resets all; CSTS.NSSRO tells, and is cleared by writing 1."""
    host.write32(NSSR, NSSR_MAGIC ^ 1)
    assert host.read32(CSTS) == RDY
    host.write32(NSSR, NSSR_MAGIC)
    assert host.read32(CSTS) == NSSRO
    assert (host.read32(CC), host.read32(AQA), host.read32(NSSR)) == (0, 0, 0)
    host.enable()
    assert host.read32(CSTS) == RDY | NSSRO
    host.write32(CSTS, NSSRO)
    assert host.read32(CSTS) == RDY


def test_a_bus_error_is_fatal_until_reset(host: Host) -> None:
    """Base 2.0, 9.5: CFS, and no command is processed."""
    host.engine.events.append(FakeEvent("bus-error"))
    host.send(0x06, cdw10=1)
    assert host.read32(CSTS) == RDY | CFS
    assert host.completion() is None
    host.write32(CC, 0)
    host.enable()
    assert host.read32(CSTS) == RDY


def test_interrupt_mask_registers(host: Host) -> None:
    """Base 2.0, 3.1.3.3 and 3.1.3.4: written ones set and clear; both read the mask."""
    host.write32(0x0C, 0b1101)
    host.write32(0x10, 0b0100)
    assert (host.read32(0x0C), host.read32(0x10)) == (0b1001, 0b1001)


def test_partial_writes(off: Host) -> None:
    """Bytes that aren't written stay; those of write-one registers count as zero."""
    off.write32(AQA, 0x001F001F)
    off.controller.write_register(AQA + 2, b"\x07\0")
    assert off.read32(AQA) == 0x0007001F
    off.write32(0x0C, 0x80000000)
    off.controller.write_register(0x10, b"\xff")
    assert off.read32(0x0C) == 0x80000000


def test_unaligned_and_long_reads(off: Host) -> None:
    assert off.controller.read_register(0x0A, 1) == b"\x02"
    assert off.controller.read_register(0xFFE, 8) == bytes(8)


READ_ONLY = [at for at in range(0, 0x1000, 4) if at not in (0x0C, 0x10, 0x14, 0x1C, 0x20)]


@given(
    st.sampled_from([at for at in READ_ONLY if not 0x24 <= at < 0x38]),
    st.integers(0, 2**32 - 1),
)
def test_reserved_and_read_only_registers_ignore_writes(at: int, value: int) -> None:
    """Base 2.0, 3.1.3: CMB, boot partitions and PMR are not there and read zero."""
    host = Host()
    before = host.controller.read_register(0, 0x1000)
    host.write32(at, value)
    assert host.controller.read_register(0, 0x1000) == before


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0x0C, 0x10, CC, CSTS, NSSR, AQA, 0x28, 0x2C, 0x30, 0x34, 0x700]),
            st.integers(0, 2**32 - 1) | st.sampled_from([CC_ENABLE, NSSR_MAGIC, 0]),
            st.sampled_from([1, 2, 3, 4, 8]),
        ),
        max_size=12,
    )
)
def test_any_writes_leave_a_controller_that_resets(writes: list[tuple[int, int, int]]) -> None:
    """Whatever a guest writes, CC.EN = 0 and a proper enable bring it back."""
    host = Host()
    for at, value, size in writes:
        host.controller.write_register(at, value.to_bytes(8, "little")[:size])
        host.controller.process()
    host.write32(CC, 0)
    host.enable()
    assert host.read32(CSTS) & (RDY | CFS) == RDY
    host.controller.close()
