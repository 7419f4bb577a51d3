"""Asynchronous events and Abort (Base 2.0, 5.1 and 5.2), and how commands are dispatched."""

import pytest
from controller_fakes import DATA, FakeBackend, FakeEvent, Host
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowbell.controller import Namespace
from shadowbell.nvme import NSID_ALL, AdminOpcode, Feature, LogPage, SubmissionEntry
from shadowbell.nvme import Status as S
from shadowbell.nvme.identify import NamespaceList

AER, ABORT = AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST, AdminOpcode.ABORT
GET_LOG, IDENTIFY = AdminOpcode.GET_LOG_PAGE, AdminOpcode.IDENTIFY
RAE = 1 << 15
NUMD_4096 = 1023 << 16
NAMESPACE_NOTICES = 1 << 8


def ask_for_notices(host: Host) -> None:
    feature = Feature.ASYNCHRONOUS_EVENT_CONFIGURATION
    assert host.do(AdminOpcode.SET_FEATURES, cdw10=feature, cdw11=NAMESPACE_NOTICES).status == 0


def test_requests_are_parked(host: Host) -> None:
    """Base 2.0, 5.2: no completion until there is an event; four at most."""
    for _ in range(4):
        host.send(AER)
        assert host.completion() is None
    done = host.do(AER)
    assert S(done.status) is S.ASYNCHRONOUS_EVENT_REQUEST_LIMIT_EXCEEDED


@pytest.mark.parametrize(
    ("kind", "dw0"),
    [("invalid-doorbell-register", 0x00010000), ("invalid-doorbell-value", 0x00010100)],
)
def test_doorbell_errors(host: Host, kind: str, dw0: int) -> None:
    """Base 2.0, 5.2.1: error status, with the log page that tells more."""
    cid = host.send(AER)
    host.engine.events.append(FakeEvent(kind, qid=3))
    host.controller.process()
    done = host.completion()
    assert done is not None
    assert (done.cid, done.status, done.dw0) == (cid, 0, dw0)


def test_an_event_waits_for_a_request_and_masks_its_type(host: Host) -> None:
    """Base 2.0, 5.2: the next of its type comes after the log was read without RAE."""
    events = [FakeEvent("invalid-doorbell-value"), FakeEvent("invalid-doorbell-register")]
    host.engine.events += [events[0], events[0]]
    assert host.do(AER).dw0 == 0x00010100
    host.engine.events.append(events[1])
    host.send(AER)
    assert host.completion() is None
    host.do(GET_LOG, cdw10=LogPage.ERROR_INFORMATION | RAE)
    assert host.completion() is None
    host.do(GET_LOG, cdw10=LogPage.SMART_HEALTH_INFORMATION)
    assert host.completion() is None
    host.send(GET_LOG, cdw10=LogPage.ERROR_INFORMATION)
    told, read = host.completion(), host.completion()
    assert told is not None
    assert read is not None
    assert {told.dw0, read.dw0} == {0x00010000, 0}
    assert host.completion() is None


def test_a_log_that_could_not_be_sent_clears_nothing(host: Host) -> None:
    host.engine.events.append(FakeEvent("invalid-doorbell-value"))
    assert host.do(AER).dw0 == 0x00010100
    host.engine.events.append(FakeEvent("invalid-doorbell-register"))
    host.send(AER)
    assert host.do(GET_LOG, cdw10=LogPage.ERROR_INFORMATION, prp1=1 << 40).status != 0
    assert host.completion() is None


def test_namespace_changes(host: Host) -> None:
    """Base 2.0, 5.2.1 and 5.16.1.5: one notice, and log 04h names the namespaces."""
    ask_for_notices(host)
    cid = host.send(AER)
    host.controller.add_namespace(Namespace(7, FakeBackend(), serial="SB0001"))
    host.controller.remove_namespace(3)
    done = host.completion()
    assert done is not None
    assert (done.cid, done.dw0) == (cid, 0x00040002)
    active = host.read(IDENTIFY, cdw10=2)
    assert list(NamespaceList(active)) == [1, 7]
    changed = LogPage.CHANGED_NAMESPACE_LIST | NUMD_4096
    for cdw10, expected in ((changed | RAE, [3, 7]), (changed, [3, 7]), (changed, [])):
        assert list(NamespaceList(host.read(GET_LOG, cdw10=cdw10))) == expected
    assert host.engine.log[-1] == ("detach_namespace", 3)


def test_without_notices_nothing_is_told(host: Host) -> None:
    """Base 2.0, 5.27.1.9: notices are off until a host asks for them."""
    host.send(AER)
    host.controller.add_namespace(Namespace(7, FakeBackend(), serial="SB0001"))
    assert host.completion() is None
    assert host.read(GET_LOG, cdw10=LogPage.CHANGED_NAMESPACE_LIST | NUMD_4096) == bytes(4096)


@pytest.mark.parametrize("nsid", [0, 1, 257])
def test_a_namespace_that_can_not_be_attached(host: Host, nsid: int) -> None:
    with pytest.raises(ValueError, match=f"namespace id {nsid} "):
        host.controller.add_namespace(Namespace(nsid, FakeBackend(), serial="S"))
    with pytest.raises(KeyError):
        host.controller.remove_namespace(2)


def test_temperature_threshold_event(host: Host) -> None:
    """Base 2.0, 5.2.1 and 5.27.1.3: 308 K over a threshold of 300 K warns, where asked for."""
    set_features = AdminOpcode.SET_FEATURES
    cid = host.send(AER)
    host.do(set_features, cdw10=Feature.ASYNCHRONOUS_EVENT_CONFIGURATION, cdw11=2)
    host.send(set_features, cdw10=Feature.TEMPERATURE_THRESHOLD, cdw11=300)
    done = host.completion()
    assert done is not None
    assert (done.cid, done.dw0) == (cid, 0x00020101)
    host.completion()
    assert host.read(GET_LOG, 512, cdw10=LogPage.SMART_HEALTH_INFORMATION | 127 << 16)[0] == 2


def test_reset_forgets_requests_and_events(host: Host) -> None:
    """Base 2.0, 5.2: outstanding requests end without a completion."""
    for _ in range(4):
        host.send(AER)
    host.engine.events.append(FakeEvent("invalid-doorbell-value"))
    host.write32(0x14, 0)
    host.enable()
    host.send(AER)
    assert host.completion() is None


def test_abort_of_a_parked_request(host: Host) -> None:
    """Base 2.0, 5.1: the request completes first, then Abort with 0: aborted."""
    first, second = host.send(AER), host.send(AER)
    abort = host.send(ABORT, cdw10=first << 16)
    done = [host.completion(), host.completion()]
    assert [(d.cid, d.status, d.dw0) for d in done if d] == [
        (first, S.COMMAND_ABORT_REQUESTED, 0),
        (abort, 0, 0),
    ]
    assert host.do(ABORT, cdw10=first << 16).dw0 == 1
    host.engine.events.append(FakeEvent("invalid-doorbell-value"))
    host.controller.process()
    told = host.completion()
    assert told is not None
    assert told.cid == second


def test_abort_of_what_is_not_there(host: Host) -> None:
    """Base 2.0, 5.1: not aborted is 1; a queue that doesn't exist is a wrong field."""
    assert host.do(ABORT, cdw10=0x1234 << 16).dw0 == 1
    assert S(host.do(ABORT, cdw10=5).status) is S.INVALID_FIELD_IN_COMMAND


@pytest.mark.parametrize("opcode", [0x03, 0x0D, 0x10, 0x11, 0x14, 0x18, 0x80, 0x84, 0xC0, 0xFF])
def test_other_opcodes(host: Host, opcode: int) -> None:
    """Base 2.0, 3.3.3.2.1.1: Invalid Command Opcode."""
    done = host.do(opcode, nsid=NSID_ALL)
    assert S(done.status) is S.INVALID_COMMAND_OPCODE
    assert done.dnr


@pytest.mark.parametrize("flags", [1, 2, 3, 0x40, 0x80])
def test_fused_commands_and_sgls_on_the_admin_queue(host: Host, flags: int) -> None:
    """Base 2.0, 3.3.3.1: neither is supported there over PCIe."""
    done = host.do(IDENTIFY, cdw10=1, flags=flags)
    assert S(done.status) is S.INVALID_FIELD_IN_COMMAND


def test_what_nobody_foresaw_ends_the_command_only(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(sqe: bytes, data: bytes) -> None:
        raise OSError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(host.engine, "write_data", fail)
        done = host.do(IDENTIFY, cdw10=1)
    assert S(done.status) is S.INTERNAL_ERROR
    assert not done.dnr
    assert "gone" in caplog.text
    assert host.do(IDENTIFY, cdw10=1).status == 0


def test_a_turn_has_an_end(host: Host) -> None:
    """A guest that never stops to send commands can't hold up the process."""
    command = bytes(SubmissionEntry(opcode=IDENTIFY, cdw10=1, prp1=DATA))
    host.engine.admin.extend([command] * 4097)
    assert host.controller.process()
    assert len(host.engine.admin) == 1
    assert not host.controller.process()


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(AdminOpcode), st.binary(min_size=63, max_size=63))))
def test_any_command_gets_one_completion(commands: list[tuple[int, bytes]]) -> None:
    """Whatever bytes a guest sends: a status of the specification, or parked, never a crash."""
    host = Host()
    host.enable()
    for opcode, rest in commands:
        host.engine.admin.append(bytes((opcode,)) + rest)
    host.controller.process()
    statuses = [status & 0x7FF for _, status, _ in host.engine.completions]
    assert S.INTERNAL_ERROR not in statuses
    assert all(S(status) is not None for status in statuses)
    parked = len(commands) - len(statuses)
    assert 0 <= parked <= 4
