"""Queue entries, registers, doorbells and lists against literal bytes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowbell.nvme import CompletionEntry, Status, SubmissionEntry
from shadowbell.nvme.doorbells import completion_doorbell, must_ring, submission_doorbell
from shadowbell.nvme.events import event_dword, parse_event_dword
from shadowbell.nvme.identify import NamespaceList, build_descriptors, parse_descriptors
from shadowbell.nvme.identify_controller import IdentifyController, PowerState
from shadowbell.nvme.identify_namespace import IdentifyNamespace
from shadowbell.nvme.logs import ErrorInformation, SmartHealthInformation
from shadowbell.nvme.registers import Capabilities, ControllerConfiguration, ControllerStatus
from shadowbell.nvme.status import describe
from shadowbell.nvme.transfer import DsmRange, SglDescriptor, SglType


def test_submission_entry_layout() -> None:
    """Base 2.0, 3.3.3.1: where each dword of a command lies."""
    sqe = SubmissionEntry(
        opcode=0x02,
        flags=0x41,
        cid=0x1234,
        nsid=1,
        cdw2=2,
        cdw3=3,
        mptr=0x44,
        prp1=0x1000,
        prp2=0x2000,
        cdw10=10,
        cdw11=11,
        cdw12=12,
        cdw13=13,
        cdw14=14,
        cdw15=15,
    )
    assert bytes(sqe) == bytes.fromhex(
        "02413412 01000000 02000000 03000000 4400000000000000 0010000000000000 0020000000000000"
        "0a000000 0b000000 0c000000 0d000000 0e000000 0f000000"
    )
    assert (sqe.fuse, sqe.psdt) == (1, 1)


@given(st.binary(min_size=64, max_size=64))
def test_submission_entry_round_trip(data: bytes) -> None:
    assert bytes(SubmissionEntry.parse(data)) == data


@given(st.binary(min_size=16, max_size=16))
def test_completion_entry_round_trip(data: bytes) -> None:
    assert bytes(CompletionEntry.parse(data)) == data


@pytest.mark.parametrize("size", [0, 15, 63, 65])
def test_entries_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(struct.error):
        SubmissionEntry.parse(bytes(size))
    with pytest.raises(struct.error):
        CompletionEntry.parse(bytes(size))


def test_completion_status_field() -> None:
    """Base 2.0, 3.3.3.2: phase in bit 16 of dword 3, then SC, SCT, CRD, M and DNR."""
    cqe = CompletionEntry.parse(bytes.fromhex("78563412 00000000 0500 0100 0700 0bc2"))
    assert (cqe.dw0, cqe.sqhd, cqe.sqid, cqe.cid) == (0x12345678, 5, 1, 7)
    assert cqe.phase == 1
    assert cqe.status == 0x105
    assert cqe.more
    assert cqe.dnr


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0x0000, "Successful completion (0000h)"),
        (Status.INVALID_QUEUE_SIZE, "Invalid queue size (0102h)"),
        (0x4281, "Unrecovered read error (0281h)"),
        (0x7FF, "Unknown status (07FFh)"),
    ],
)
def test_status_in_words(status: int, words: str) -> None:
    assert describe(status) == words


def test_status_parts() -> None:
    assert (Status.COMPARE_FAILURE.sct, Status.COMPARE_FAILURE.sc) == (2, 0x85)


def test_capability_fields() -> None:
    """Base 2.0, 3.1.3.1."""
    cap = Capabilities()
    cap.mqes, cap.cqr, cap.to, cap.nssrs, cap.css = 0xFFF, 1, 0x1E, 1, 0x41
    cap.mpsmax, cap.crwms = 4, 1
    assert int(cap) == 0x0840_0830_1E01_0FFF
    assert Capabilities(int(cap)) == cap


@given(st.integers(0, 2**32 - 1))
def test_configuration_fields(value: int) -> None:
    """Base 2.0, 3.1.3.5."""
    cc = ControllerConfiguration(value)
    assert int(cc) == value
    assert cc.en == value & 1
    assert cc.css == value >> 4 & 7
    assert cc.mps == value >> 7 & 15
    assert cc.ams == value >> 11 & 7
    assert cc.shn == value >> 14 & 3
    assert cc.iosqes == value >> 16 & 15
    assert cc.iocqes == value >> 20 & 15


def test_status_register_fields() -> None:
    """Base 2.0, 3.1.3.6."""
    csts = ControllerStatus(0b11011)
    assert (csts.rdy, csts.cfs, csts.shst, csts.nssro) == (1, 1, 2, 1)


def test_doorbell_offsets() -> None:
    """PCIe Transport 1.0, 3.1.2.1 and 3.1.2.2."""
    assert [submission_doorbell(0), completion_doorbell(0)] == [0x1000, 0x1004]
    assert [submission_doorbell(3), completion_doorbell(3)] == [0x1018, 0x101C]
    assert submission_doorbell(1, dstrd=2) == 0x1020


@given(st.integers(0, 0xFFFF), st.integers(0, 300), st.integers(-5, 305))
def test_a_host_rings_exactly_when_the_event_index_is_passed(old: int, step: int, at: int) -> None:
    """Base 2.0, B.5: EventIdx lies in [old, new), going round at 2^16."""
    new, event_idx = (old + step) & 0xFFFF, (old + at) & 0xFFFF
    assert must_ring(event_idx, new, old) is (0 <= at < step)


def test_event_dword() -> None:
    """Base 2.0, 5.2.1: type, information, log page."""
    assert event_dword(2, 0, 4) == 0x00040002
    assert parse_event_dword(0x00040102) == (2, 1, 4)


def test_namespace_list() -> None:
    """Base 2.0, 4.5.2: increasing, zero-filled."""
    raw = bytes(NamespaceList.of([1, 2, 0x100]))
    assert raw == bytes.fromhex("01000000 02000000 00010000") + bytes(4096 - 12)
    assert list(NamespaceList(raw)) == [1, 2, 0x100]
    assert len(list(NamespaceList.of(range(1, 1025)))) == 1024


def test_identification_descriptors() -> None:
    """Base 2.0, 5.17.2.3: NIDT, NIDL, two reserved bytes, NID."""
    raw = build_descriptors([(1, bytes(range(8))), (4, b"\0")])
    assert raw == bytes.fromhex("01080000 0001020304050607 04010000 00") + bytes(4096 - 17)
    assert parse_descriptors(raw) == {1: bytes(range(8)), 4: b"\0"}
    with pytest.raises(ValueError, match="too many"):
        build_descriptors([(1, bytes(255))] * 16)


@given(st.binary(max_size=128))
def test_hostile_descriptors_end_the_parser(data: bytes) -> None:
    parse_descriptors(data)


@pytest.mark.parametrize(
    ("structure", "offsets"),
    [
        (
            IdentifyController,
            {
                "mdts": 77,
                "ver": 80,
                "oaes": 92,
                "cntrltype": 111,
                "oacs": 256,
                "lpa": 261,
                "wctemp": 266,
                "tnvmcap": 280,
                "kas": 320,
                "sanicap": 328,
                "anacap": 343,
                "sqes": 512,
                "nn": 516,
                "oncs": 520,
                "vwc": 525,
                "sgls": 536,
                "mnan": 540,
                "subnqn": 768,
                "ioccsz": 1792,
                "psd": 2048,
            },
        ),
        (PowerState, {"mp": 0, "flags": 3, "enlat": 4, "rwl": 15, "actp": 20}),
        (
            IdentifyNamespace,
            {"dlfeat": 33, "noiob": 46, "npwg": 64, "nows": 72, "nsattr": 99, "nguid": 104},
        ),
        (ErrorInformation, {"sqid": 8, "lba": 16, "nsid": 24, "trtype": 29}),
        (
            SmartHealthInformation,
            {"data_units_read": 32, "host_read_commands": 64, "power_on_hours": 128},
        ),
        (DsmRange, {"length": 4, "slba": 8}),
        (SglDescriptor, {"length": 8, "identifier": 15}),
    ],
)
def test_field_offsets(structure: type, offsets: dict[str, int]) -> None:
    """The offsets that hosts depend on, as the specification's figures give them."""
    assert {name: getattr(structure, name).offset for name in offsets} == offsets


def test_sgl_descriptor() -> None:
    """Base 2.0, 4.1.2: address, length, type in the high half of byte 15."""
    sgl = SglDescriptor()
    sgl.address, sgl.length, sgl.type = 0x1000, 0x200, SglType.LAST_SEGMENT
    assert bytes(sgl) == bytes.fromhex("0010000000000000 00020000 000000 30")
