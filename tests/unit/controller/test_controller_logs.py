"""Get Log Page (Base 2.0, 5.16)."""

import pytest
from controller_fakes import FakeEvent, FakeLedger, Host

from shadowbell.nvme import NSID_ALL, AdminOpcode, IoOpcode, LogPage
from shadowbell.nvme import Status as S
from shadowbell.nvme.logs import (
    CommandsSupportedAndEffects,
    ErrorInformation,
    FirmwareSlotInformation,
    SmartHealthInformation,
    SupportedLogPages,
)

GET_LOG = AdminOpcode.GET_LOG_PAGE
RAE = 1 << 15


def log(host: Host, lid: int, length: int, *, offset: int = 0, nsid: int = 0) -> bytes:
    numd = length // 4 - 1
    return host.read(
        GET_LOG,
        length,
        cdw10=lid | (numd & 0xFFFF) << 16,
        cdw11=numd >> 16,
        cdw12=offset & 0xFFFFFFFF,
        cdw13=offset >> 32,
        nsid=nsid,
    )


def test_supported_log_pages(host: Host) -> None:
    """Base 2.0, 5.16.1.1."""
    pages = SupportedLogPages(log(host, LogPage.SUPPORTED_LOG_PAGES, 1024))
    assert [lid for lid, value in enumerate(pages.lids) if value] == [0, 1, 2, 3, 4, 5, 0x12, 0x13]
    for lid in (lid for lid, value in enumerate(pages.lids) if value):
        log(host, lid, 4)


def test_health_counts_what_the_queues_did(host: Host) -> None:
    """Base 2.0, 5.16.1.3: data units are thousands of 512 bytes, rounded up."""
    host.engine.ledgers = [
        FakeLedger({"read": 5, "compare": 2, "flush": 9}, bytes_read=512_000),
        FakeLedger({"write": 4}, bytes_read=1, bytes_written=1024, media_errors=3),
    ]
    smart = SmartHealthInformation(log(host, LogPage.SMART_HEALTH_INFORMATION, 512, nsid=NSID_ALL))
    assert (smart.data_units_read, smart.data_units_written) == (2, 1)
    assert (smart.host_read_commands, smart.host_write_commands) == (7, 4)
    assert smart.media_and_data_integrity_errors == 3
    assert smart.composite_temperature == 308
    assert (smart.available_spare, smart.critical_warning, smart.percentage_used) == (100, 0, 0)
    assert (smart.power_cycles, smart.unsafe_shutdowns) == (1, 0)


def test_health_counts_power_losses(host: Host) -> None:
    """Base 2.0, 5.16.1.3: unsafe is a power loss that no shutdown came before."""
    host.controller.reset(power_loss=True)
    host.controller.reset(power_loss=True)
    host.enable()
    host.write32(0x14, 0x00464001)
    host.controller.reset(power_loss=True)
    host.enable()
    host.controller.reset()
    host.enable()
    smart = SmartHealthInformation(log(host, LogPage.SMART_HEALTH_INFORMATION, 512))
    assert (smart.power_cycles, smart.unsafe_shutdowns) == (4, 1)


def test_firmware_slots(host: Host) -> None:
    """Base 2.0, 5.16.1.4."""
    slots = FirmwareSlotInformation(log(host, LogPage.FIRMWARE_SLOT_INFORMATION, 512))
    assert slots.active_slot == 1
    assert slots.frs[0].text == "0.1.0"
    assert slots.frs[1].text == ""


def test_command_effects(host: Host) -> None:
    """Base 2.0, 5.16.1.6."""
    effects = CommandsSupportedAndEffects(log(host, LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 4096))
    supported = [opcode for opcode, value in enumerate(effects.acs) if value & 1]
    assert supported == [0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x7C]
    io = [IoOpcode(opcode) for opcode, value in enumerate(effects.iocs) if value & 1]
    assert [int(opcode) for opcode in io] == [0, 1, 2, 5, 8, 9, 0xC]
    changing = [IoOpcode(opcode) for opcode, value in enumerate(effects.iocs) if value & 2]
    assert changing == [IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT]


def test_feature_effects(host: Host) -> None:
    """Base 2.0, 5.16.1.17: what is marked as supported can be got."""
    raw = log(host, LogPage.FEATURE_IDENTIFIERS_SUPPORTED_AND_EFFECTS, 1024)
    fids = [fid for fid in range(256) if raw[fid * 4] & 1]
    mandatory = {0x01, 0x02, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A, 0x0B}
    assert mandatory <= set(fids)
    for fid in fids:
        assert (
            host.do(AdminOpcode.GET_FEATURES, cdw10=fid, nsid=int(fid in (0x05, 0x84))).status == 0
        )


def test_error_log(host: Host) -> None:
    """Base 2.0, 5.16.1.2: newest first, counted from 1, with the command and the wrong field."""
    assert log(host, LogPage.ERROR_INFORMATION, 4096) == bytes(4096)
    bad = host.do(AdminOpcode.IDENTIFY, cdw10=0xFF, nsid=7)
    host.engine.events.append(
        FakeEvent("io-error", qid=2, cid=77, status=S.UNRECOVERED_READ_ERROR, nsid=1, lba=1234)
    )
    host.controller.process()
    raw = log(host, LogPage.ERROR_INFORMATION, 4096)
    newest, older, unused = (ErrorInformation(raw[at:]) for at in (0, 64, 128))
    assert (newest.error_count, newest.sqid, newest.cid) == (2, 2, 77)
    assert (newest.status & 0x7FF, newest.nsid, newest.lba) == (0x281, 1, 1234)
    assert (older.error_count, older.sqid, older.cid, older.nsid) == (1, 0, bad.cid, 7)
    assert older.status == 0x4002
    assert older.parameter_error_location == 40
    assert unused.error_count == 0
    smart = SmartHealthInformation(log(host, LogPage.SMART_HEALTH_INFORMATION, 512))
    assert smart.number_of_error_information_log_entries == 2


def test_error_log_is_a_ring_that_outlives_resets(host: Host) -> None:
    for _ in range(70):
        host.do(0x7F)
    host.controller.reset()
    host.enable()
    raw = log(host, LogPage.ERROR_INFORMATION, 4096)
    counts = [ErrorInformation(raw[at:]).error_count for at in range(0, 4096, 64)]
    assert counts == list(range(70, 6, -1))


def test_offsets_and_lengths(host: Host) -> None:
    """Base 2.0, 5.16.1: any dword-aligned part; after the end there are zeros."""
    whole = log(host, LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 4096)
    assert log(host, LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 8, offset=24) == whole[24:32]
    assert log(host, LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 8, offset=4096) == bytes(8)
    assert log(host, LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 8192) == whole + bytes(4096)
    assert len(log(host, LogPage.ERROR_INFORMATION, 1 << 20)) == 1 << 20


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"cdw10": 0x06}, S.INVALID_LOG_PAGE),
        ({"cdw10": 0x70}, S.INVALID_LOG_PAGE),
        ({"cdw10": 0xFF}, S.INVALID_LOG_PAGE),
        ({"cdw10": 0x01, "cdw12": 2}, S.INVALID_FIELD_IN_COMMAND),
        ({"cdw10": 0x01, "cdw12": 4100}, S.INVALID_FIELD_IN_COMMAND),
        ({"cdw10": 0x02, "cdw13": 1}, S.INVALID_FIELD_IN_COMMAND),
        ({"cdw10": 0x01, "cdw11": 0xFFFF}, S.INVALID_FIELD_IN_COMMAND),
        ({"cdw10": 0x01, "cdw11": 4}, S.INVALID_FIELD_IN_COMMAND),
        ({"cdw10": 0x01, "cdw14": 1 << 23}, S.INVALID_FIELD_IN_COMMAND),
        ({"cdw10": 0x05, "cdw14": 2 << 24}, S.INVALID_FIELD_IN_COMMAND),
        ({"cdw10": 0x02, "nsid": 1}, S.INVALID_FIELD_IN_COMMAND),
    ],
)
def test_errors(host: Host, fields: dict[str, int], status: S) -> None:
    """Base 2.0, 5.16.1 and 5.16.3: no such log, bad offsets, more than MDTS, a namespace's log."""
    done = host.do(GET_LOG, **fields)
    assert S(done.status) is status
    assert done.dnr
