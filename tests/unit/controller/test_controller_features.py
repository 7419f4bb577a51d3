"""Get Features and Set Features (Base 2.0, 5.15 and 5.27)."""

import pytest
from controller_fakes import DATA, Host

from shadowbell.nvme import NSID_ALL, AdminOpcode, Feature
from shadowbell.nvme import Status as S

GET, SET = AdminOpcode.GET_FEATURES, AdminOpcode.SET_FEATURES
CURRENT, DEFAULT, SAVED, CAPABILITIES = 0, 1 << 8, 2 << 8, 3 << 8
SAVE = 1 << 31


@pytest.mark.parametrize(
    ("feature", "default", "value"),
    [
        (Feature.ARBITRATION, 7, 0x01020302),
        (Feature.POWER_MANAGEMENT, 0, 1 << 5),
        (Feature.TEMPERATURE_THRESHOLD, 343, 350),
        (Feature.VOLATILE_WRITE_CACHE, 1, 0),
        (Feature.INTERRUPT_COALESCING, 0, 0x1234),
        (Feature.WRITE_ATOMICITY_NORMAL, 0, 1),
        (Feature.ASYNCHRONOUS_EVENT_CONFIGURATION, 0, 0x11F),
        (Feature.IO_COMMAND_SET_PROFILE, 0, 0),
    ],
)
def test_values(host: Host, feature: int, default: int, value: int) -> None:
    """Current follows Set Features; saved and default don't; a reset brings the default back."""
    assert host.do(GET, cdw10=feature).dw0 == default
    assert host.do(SET, cdw10=feature, cdw11=value).status == 0
    assert host.do(GET, cdw10=feature).dw0 == value
    assert host.do(GET, cdw10=feature | DEFAULT).dw0 == default
    assert host.do(GET, cdw10=feature | SAVED).dw0 == default
    assert host.do(GET, cdw10=feature | CAPABILITIES).dw0 == 0b100
    host.write32(0x14, 0)
    host.enable()
    assert host.do(GET, cdw10=feature).dw0 == default


def test_the_software_progress_marker_outlives_a_reset(host: Host) -> None:
    """NVM Command Set 1.0, 4.1.3: persistent."""
    host.do(SET, cdw10=Feature.SOFTWARE_PROGRESS_MARKER, cdw11=3)
    host.controller.reset()
    host.enable()
    assert host.do(GET, cdw10=Feature.SOFTWARE_PROGRESS_MARKER).dw0 == 3


def test_the_write_cache_reaches_the_engine(host: Host) -> None:
    """NVM Command Set 1.0, 4.1.3: without the cache each write is durable; a reset enables it."""
    calls = [entry for entry in host.engine.log if entry[0] == "set_write_cache"]
    assert calls == []
    host.do(SET, cdw10=Feature.VOLATILE_WRITE_CACHE, cdw11=0)
    assert host.engine.log[-1] == ("set_write_cache", False)
    host.do(SET, cdw10=Feature.VOLATILE_WRITE_CACHE, cdw11=0)
    host.write32(0x14, 0)
    calls = [entry for entry in host.engine.log if entry[0] == "set_write_cache"]
    assert calls == [("set_write_cache", False), ("set_write_cache", True)]


def test_a_write_cache_that_cannot_be_flushed_stays_on(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turning it off makes everything durable first; where that fails nothing may claim it."""

    def fail(enabled: bool) -> None:
        raise OSError(5, "can't flush")

    monkeypatch.setattr(host.engine, "set_write_cache", fail)
    done = host.do(SET, cdw10=Feature.VOLATILE_WRITE_CACHE, cdw11=0)
    assert S(done.status) is S.INTERNAL_ERROR
    assert host.do(GET, cdw10=Feature.VOLATILE_WRITE_CACHE).dw0 == 1


@pytest.mark.parametrize("asked", [0, 0x000F000F, 0xFFFEFFFE])
def test_number_of_queues(host: Host, asked: int) -> None:
    """Base 2.0, 5.27.1.5: what is allocated, 0's based, in both halves."""
    assert host.do(SET, cdw10=Feature.NUMBER_OF_QUEUES, cdw11=asked).dw0 == 0x00070007
    assert host.do(GET, cdw10=Feature.NUMBER_OF_QUEUES).dw0 == 0x00070007


def test_number_of_queues_after_a_queue_exists(host: Host) -> None:
    host.do(AdminOpcode.CREATE_IO_COMPLETION_QUEUE, cdw10=1 | 1 << 16, cdw11=1)
    done = host.do(SET, cdw10=Feature.NUMBER_OF_QUEUES, cdw11=0)
    assert S(done.status) is S.COMMAND_SEQUENCE_ERROR


def create_queue(host: Host, qid: int, vector: int) -> None:
    done = host.do(
        AdminOpcode.CREATE_IO_COMPLETION_QUEUE, cdw10=qid | 1 << 16, cdw11=0b11 | vector << 16
    )
    assert done.status == 0


def coalescing(host: Host) -> list[tuple[object, ...]]:
    return [entry[1:] for entry in host.engine.log if entry[0] == "set_coalescing"]


def test_interrupt_vectors(host: Host) -> None:
    """Base 2.0, 5.27.1.7: one value for each vector; the admin queue's isn't coalesced."""
    feature = Feature.INTERRUPT_VECTOR_CONFIGURATION
    create_queue(host, 2, 8)
    assert host.do(GET, cdw10=feature, cdw11=0).dw0 == 1 << 16
    assert host.do(GET, cdw10=feature, cdw11=8).dw0 == 8
    assert host.do(SET, cdw10=feature, cdw11=8 | 1 << 16).status == 0
    assert host.do(GET, cdw10=feature, cdw11=8).dw0 == 8 | 1 << 16
    assert host.do(GET, cdw10=feature | DEFAULT, cdw11=8).dw0 == 8
    assert host.do(GET, cdw10=feature | SAVED, cdw11=8).dw0 == 8
    assert host.do(GET, cdw10=feature, cdw11=7).dw0 == 7
    assert coalescing(host) == [(1, 0, {0, 8})]
    assert host.do(SET, cdw10=feature, cdw11=8).status == 0
    assert host.do(GET, cdw10=feature, cdw11=8).dw0 == 8
    assert coalescing(host)[-1] == (1, 0, {0})


def test_a_vector_is_configured_once_a_completion_queue_has_it(host: Host) -> None:
    """Base 2.0, 5.27.1.7: before, and when interrupts are off, Invalid Field in Command."""
    feature = Feature.INTERRUPT_VECTOR_CONFIGURATION
    assert S(host.do(SET, cdw10=feature, cdw11=3).status) is S.INVALID_FIELD_IN_COMMAND
    host.do(AdminOpcode.CREATE_IO_COMPLETION_QUEUE, cdw10=1 | 1 << 16, cdw11=1 | 3 << 16)
    assert S(host.do(SET, cdw10=feature, cdw11=3).status) is S.INVALID_FIELD_IN_COMMAND
    create_queue(host, 2, 3)
    assert host.do(SET, cdw10=feature, cdw11=3).status == 0
    host.do(AdminOpcode.DELETE_IO_COMPLETION_QUEUE, cdw10=2)
    assert S(host.do(SET, cdw10=feature, cdw11=3).status) is S.INVALID_FIELD_IN_COMMAND


def test_coalescing_reaches_the_engine(host: Host) -> None:
    """Base 2.0, 5.27.1.6: a 0's based threshold, a time in 100 us; a reset clears both."""
    assert host.do(SET, cdw10=Feature.INTERRUPT_COALESCING, cdw11=0x0307).status == 0
    create_queue(host, 1, 5)
    host.do(SET, cdw10=Feature.INTERRUPT_VECTOR_CONFIGURATION, cdw11=5 | 1 << 16)
    assert coalescing(host) == [(8, 300, {0}), (8, 300, {0, 5})]
    host.do(SET, cdw10=Feature.INTERRUPT_COALESCING, cdw11=0x0307)
    assert len(coalescing(host)) == 2
    host.write32(0x14, 0)
    assert coalescing(host)[-1] == (1, 0, {0})
    host.enable()
    assert host.do(GET, cdw10=Feature.INTERRUPT_VECTOR_CONFIGURATION, cdw11=5).dw0 == 5


def test_temperature_thresholds(host: Host) -> None:
    """Base 2.0, 5.27.1.3: over and under, of the composite temperature only."""
    feature, under = Feature.TEMPERATURE_THRESHOLD, 1 << 20
    host.do(SET, cdw10=feature, cdw11=200 | under)
    host.do(SET, cdw10=feature, cdw11=330 | 0xF << 16)
    assert host.do(GET, cdw10=feature).dw0 == 330
    assert host.do(GET, cdw10=feature, cdw11=under).dw0 == 200
    assert host.do(GET, cdw10=feature | DEFAULT, cdw11=under).dw0 == 0


def test_error_recovery_belongs_to_a_namespace(host: Host) -> None:
    """NVM Command Set 1.0, 4.1.3: TLER of each namespace; FFFFFFFFh sets all."""
    feature = Feature.ERROR_RECOVERY
    assert host.do(GET, cdw10=feature | CAPABILITIES).dw0 == 0b110
    host.do(SET, cdw10=feature, cdw11=5, nsid=1)
    assert [host.do(GET, cdw10=feature, nsid=nsid).dw0 for nsid in (1, 3)] == [5, 0]
    host.do(SET, cdw10=feature, cdw11=9, nsid=NSID_ALL)
    assert [host.do(GET, cdw10=feature, nsid=nsid).dw0 for nsid in (1, 3)] == [9, 9]


def test_timestamp(host: Host) -> None:
    """Base 2.0, 5.27.1.12: milliseconds that go on, and where they come from."""
    feature, start = Feature.TIMESTAMP, 1_700_000_000_000
    origin = int.from_bytes(host.read(GET, 8, cdw10=feature), "little") >> 48
    assert origin == 0
    host.engine.memory[DATA : DATA + 8] = start.to_bytes(8, "little")
    assert host.do(SET, cdw10=feature).status == 0
    value = int.from_bytes(host.read(GET, 8, cdw10=feature), "little")
    assert value >> 48 == 0b001 << 1
    assert start <= value & (1 << 48) - 1 < start + 60_000


@pytest.mark.parametrize("extended", [0, 1])
def test_host_identifier(host: Host, extended: int) -> None:
    """Base 2.0, 5.27.1.25: 8 or, with EXHID, 16 bytes; gone after a reset."""
    feature, size = Feature.HOST_IDENTIFIER, 16 if extended else 8
    name = bytes(range(1, size + 1))
    assert host.read(GET, size, cdw10=feature, cdw11=extended) == bytes(size)
    host.engine.memory[DATA : DATA + size] = name
    assert host.do(SET, cdw10=feature, cdw11=extended).status == 0
    assert host.read(GET, size, cdw10=feature, cdw11=extended) == name
    assert host.read(GET, size, cdw10=feature | DEFAULT, cdw11=extended) == bytes(size)
    host.write32(0x14, 0)
    host.enable()
    assert host.read(GET, size, cdw10=feature, cdw11=extended) == bytes(size)


@pytest.mark.parametrize(
    ("opcode", "cdw10", "cdw11", "nsid", "status"),
    [
        (GET, 0x00, 0, 0, S.INVALID_FIELD_IN_COMMAND),
        (GET, Feature.HOST_MEMORY_BUFFER, 0, 0, S.INVALID_FIELD_IN_COMMAND),
        (GET, Feature.HOST_MEMORY_BUFFER | CAPABILITIES, 0, 0, S.INVALID_FIELD_IN_COMMAND),
        (GET, Feature.ARBITRATION | 4 << 8, 0, 0, S.INVALID_FIELD_IN_COMMAND),
        (GET, Feature.ERROR_RECOVERY, 0, 0, S.INVALID_NAMESPACE_OR_FORMAT),
        (GET, Feature.ERROR_RECOVERY, 0, NSID_ALL, S.INVALID_NAMESPACE_OR_FORMAT),
        (GET, Feature.ERROR_RECOVERY, 0, 2, S.INVALID_FIELD_IN_COMMAND),
        (GET, Feature.TEMPERATURE_THRESHOLD, 1 << 16, 0, S.INVALID_FIELD_IN_COMMAND),
        (GET, Feature.TEMPERATURE_THRESHOLD, 0xF << 16, 0, S.INVALID_FIELD_IN_COMMAND),
        (GET, Feature.TEMPERATURE_THRESHOLD, 2 << 20, 0, S.INVALID_FIELD_IN_COMMAND),
        (GET, Feature.INTERRUPT_VECTOR_CONFIGURATION, 9, 0, S.INVALID_FIELD_IN_COMMAND),
        (SET, Feature.KEEP_ALIVE_TIMER, 0, 0, S.INVALID_FIELD_IN_COMMAND),
        (SET, Feature.ARBITRATION | SAVE, 0, 0, S.FEATURE_IDENTIFIER_NOT_SAVEABLE),
        (SET, Feature.ARBITRATION, 0, 1, S.FEATURE_NOT_NAMESPACE_SPECIFIC),
        (SET, Feature.ARBITRATION, 0, 257, S.INVALID_NAMESPACE_OR_FORMAT),
        (SET, Feature.POWER_MANAGEMENT, 1, 0, S.INVALID_FIELD_IN_COMMAND),
        (SET, Feature.ERROR_RECOVERY, 0, 0, S.INVALID_NAMESPACE_OR_FORMAT),
        (SET, Feature.ERROR_RECOVERY, 1 << 16, 1, S.INVALID_FIELD_IN_COMMAND),
        (SET, Feature.NUMBER_OF_QUEUES, 0xFFFF, 0, S.INVALID_FIELD_IN_COMMAND),
        (SET, Feature.NUMBER_OF_QUEUES, 0xFFFF << 16, 0, S.INVALID_FIELD_IN_COMMAND),
        (SET, Feature.TEMPERATURE_THRESHOLD, 3 << 16, 0, S.INVALID_FIELD_IN_COMMAND),
        (SET, Feature.INTERRUPT_VECTOR_CONFIGURATION, 9, 0, S.INVALID_FIELD_IN_COMMAND),
        (SET, Feature.IO_COMMAND_SET_PROFILE, 1, 0, S.IO_COMMAND_SET_COMBINATION_REJECTED),
    ],
)
def test_errors(host: Host, opcode: int, cdw10: int, cdw11: int, nsid: int, status: S) -> None:
    """Base 2.0, 5.15.2 and 5.27.2."""
    done = host.do(opcode, cdw10=cdw10, cdw11=cdw11, nsid=nsid)
    assert S(done.status) is status
    assert done.dnr


def test_data_that_can_not_be_read_changes_nothing(host: Host) -> None:
    done = host.do(SET, cdw10=Feature.HOST_IDENTIFIER, prp1=1 << 40)
    assert S(done.status) is S.DATA_TRANSFER_ERROR
    assert host.read(GET, 8, cdw10=Feature.HOST_IDENTIFIER) == bytes(8)


PROTECTION = Feature.NAMESPACE_WRITE_PROTECTION_CONFIG


def test_write_protection(host: Host) -> None:
    """Base 2.0, 5.27.1.24 and 8.12: a state of each namespace, which Identify shows."""
    identify = host.read(AdminOpcode.IDENTIFY, cdw10=1)
    assert identify[531] == 0b011  # NWPC
    assert host.do(GET, cdw10=PROTECTION | CAPABILITIES).dw0 == 0b110
    for state in (1, 0, 1):
        assert host.do(SET, cdw10=PROTECTION, cdw11=state, nsid=1).status == 0
        assert host.engine.log[-1] == ("protect_namespace", 1, bool(state))
        assert host.do(GET, cdw10=PROTECTION, nsid=1).dw0 == state
        assert host.read(AdminOpcode.IDENTIFY, cdw10=0, nsid=1)[99] == state  # NSATTR
        assert host.read(AdminOpcode.IDENTIFY, cdw10=8, nsid=1)[8] == state
    assert host.do(GET, cdw10=PROTECTION | DEFAULT, nsid=1).dw0 == 0
    host.controller.reset()
    host.enable()
    assert host.do(GET, cdw10=PROTECTION, nsid=1).dw0 == 1
    host.controller.reset(power_loss=True)
    host.enable()
    assert host.do(GET, cdw10=PROTECTION, nsid=1).dw0 == 1


def test_write_protection_until_the_power_cycle(host: Host) -> None:
    """Base 2.0, 8.12: nothing but a power cycle ends it."""
    assert host.do(SET, cdw10=PROTECTION, cdw11=2, nsid=1).status == 0
    assert host.do(SET, cdw10=PROTECTION, cdw11=2, nsid=1).status == 0
    for state in (0, 1):
        done = host.do(SET, cdw10=PROTECTION, cdw11=state, nsid=1)
        assert (done.status, done.dnr) == (S.FEATURE_NOT_CHANGEABLE, True)
    host.controller.reset()
    host.enable()
    assert host.do(GET, cdw10=PROTECTION, nsid=1).dw0 == 2
    host.controller.reset(power_loss=True)
    host.enable()
    assert host.do(GET, cdw10=PROTECTION, nsid=1).dw0 == 0
    assert host.engine.log[-1] != ("protect_namespace", 1, True)


@pytest.mark.parametrize(
    ("state", "nsid", "status"),
    [
        (3, 1, S.INVALID_FIELD_IN_COMMAND),  # permanent: not offered
        (4, 1, S.INVALID_FIELD_IN_COMMAND),
        (0, 3, S.FEATURE_NOT_CHANGEABLE),  # served read-only
        (0, NSID_ALL, S.FEATURE_NOT_CHANGEABLE),
        (1, 2, S.INVALID_FIELD_IN_COMMAND),  # inactive
        (1, 0, S.INVALID_NAMESPACE_OR_FORMAT),
    ],
)
def test_write_protection_that_can_not_be(host: Host, state: int, nsid: int, status: S) -> None:
    assert host.do(SET, cdw10=PROTECTION, cdw11=state, nsid=nsid).status == status
    assert host.do(GET, cdw10=PROTECTION, nsid=1).dw0 == 0
    assert host.do(GET, cdw10=PROTECTION, nsid=3).dw0 == 1


def test_write_protection_of_all_namespaces(host: Host) -> None:
    assert host.do(SET, cdw10=PROTECTION, cdw11=1, nsid=NSID_ALL).status == 0
    assert host.do(GET, cdw10=PROTECTION, nsid=1).dw0 == 1
