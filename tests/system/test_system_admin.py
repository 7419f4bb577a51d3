"""Admin commands, registers and the controller's life, through a real socket."""

from __future__ import annotations

import struct

import pytest

from serving import SOCKET, Attach, Serve
from shadowbell.driver import CommandError, Host, LoadSpec, run_load
from shadowbell.driver.wire import REGION_BAR0
from shadowbell.errors import UserError
from shadowbell.nvme import (
    AdminOpcode,
    Cns,
    Feature,
    LogPage,
    Register,
    Status,
    SubmissionEntry,
)
from shadowbell.nvme.features import Select
from shadowbell.nvme.identify import IdentifierType
from shadowbell.nvme.logs import ErrorInformation, SmartHealthInformation


@pytest.fixture
def host(serve: Serve, attach: Attach) -> Host:
    return attach(serve("memory:64M", "memory:16M,lba=4096", "--serial", "SB0001"))


def status_of(host: Host, sqe: SubmissionEntry, length: int = 0) -> int:
    return host.admin.execute(sqe, length=length, check=False)[0].status


def test_identify(host: Host) -> None:
    controller = host.controller
    assert controller.sn == "SB0001"
    assert controller.mn == "shadowbell NVMe"
    assert controller.ver == 0x00020000 == host.registers.read32(Register.VS)
    assert (controller.sqes, controller.cqes) == (0x66, 0x44)
    assert host.namespaces[1].blocks == 64 << 11
    assert host.namespaces[2].lba_size == 4096
    assert host.admin.active_namespaces() == [1, 2]
    assert host.admin.active_namespaces(after=1) == [2]
    with pytest.raises(CommandError) as caught:
        host.admin.identify(0xFE)
    assert caught.value.status == Status.INVALID_FIELD_IN_COMMAND


def test_inactive_namespace_is_zeros_or_invalid(host: Host) -> None:
    assert host.admin.identify(Cns.NAMESPACE, nsid=3)[:4096] == bytes(4096)
    with pytest.raises(CommandError) as caught:
        host.admin.identify(Cns.NAMESPACE, nsid=0)
    assert caught.value.status == Status.INVALID_NAMESPACE_OR_FORMAT


def test_identifiers_survive_a_new_client(serve: Serve) -> None:
    served = serve("memory:16M", "memory:16M")
    seen = []
    for _ in range(2):
        with Host.connect(served.socket(SOCKET)) as host:
            seen.append([host.admin.namespace_descriptors(nsid) for nsid in (1, 2)])
    assert seen[0] == seen[1]
    assert seen[0][0][IdentifierType.NGUID] != seen[0][1][IdentifierType.NGUID]


def test_smart_log_counts_io(host: Host) -> None:
    def smart() -> SmartHealthInformation:
        return SmartHealthInformation(host.admin.get_log(LogPage.SMART_HEALTH_INFORMATION, 512))

    before = smart()
    queue = host.create_queue_pair()
    for lba in range(10):
        queue.write(1, lba * 256, bytes(128 << 10))
        queue.read(1, lba * 256, 8)
    after = smart()
    assert after.host_read_commands - before.host_read_commands == 10
    assert after.host_write_commands - before.host_write_commands == 10
    assert after.data_units_written - before.data_units_written in (2, 3)
    host.delete_queue_pair(queue)
    assert smart().host_read_commands == after.host_read_commands


def test_log_offset_and_length(host: Host) -> None:
    whole = host.admin.get_log(LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 4096)
    part = host.admin.get_log(LogPage.COMMANDS_SUPPORTED_AND_EFFECTS, 512, offset=1024)
    assert part == whole[1024:1536]
    assert struct.unpack_from("<I", whole, 4 * AdminOpcode.IDENTIFY)[0] & 1
    with pytest.raises(CommandError) as caught:
        host.admin.get_log(0xC5, 512)
    assert caught.value.status == Status.INVALID_LOG_PAGE


def test_failed_commands_are_in_the_error_log(host: Host) -> None:
    queue = host.create_queue_pair()
    with pytest.raises(CommandError):
        queue.read(1, 1 << 40, 1)
    newest = ErrorInformation(host.admin.get_log(LogPage.ERROR_INFORMATION, 64))
    assert newest.error_count == 0 or newest.status & 0x7FF == Status.LBA_OUT_OF_RANGE


def test_features(host: Host) -> None:
    for feature in (
        *(Feature.ARBITRATION, Feature.POWER_MANAGEMENT, Feature.TEMPERATURE_THRESHOLD),
        *(Feature.ERROR_RECOVERY, Feature.NUMBER_OF_QUEUES, Feature.INTERRUPT_COALESCING),
        *(Feature.WRITE_ATOMICITY_NORMAL, Feature.ASYNCHRONOUS_EVENT_CONFIGURATION),
    ):
        host.admin.get_feature(feature, nsid=1 if feature == Feature.ERROR_RECOVERY else 0)
    value = host.admin.get_feature(Feature.VOLATILE_WRITE_CACHE)[0]
    host.admin.set_feature(Feature.VOLATILE_WRITE_CACHE, value)
    host.admin.set_feature(Feature.ARBITRATION, 3)
    assert host.admin.get_feature(Feature.ARBITRATION)[0] == 3
    default = host.admin.get_feature(Feature.ARBITRATION, Select.DEFAULT)[0]
    host.reset()
    assert host.admin.get_feature(Feature.ARBITRATION)[0] == default
    with pytest.raises(CommandError) as caught:
        host.admin.get_feature(0x7F)
    assert caught.value.status == Status.INVALID_FIELD_IN_COMMAND


def test_number_of_queues_is_fixed_once_they_exist(host: Host) -> None:
    host.create_queue_pair()
    with pytest.raises(CommandError) as caught:
        host.admin.request_queues(4)
    assert caught.value.status == Status.COMMAND_SEQUENCE_ERROR


QUEUE_ERRORS = [
    pytest.param(0x05, 0 | 15 << 16, 1, Status.INVALID_QUEUE_IDENTIFIER, id="cq-0"),
    pytest.param(0x05, 200 | 15 << 16, 1, Status.INVALID_QUEUE_IDENTIFIER, id="cq-200"),
    pytest.param(0x05, 1 | 15 << 16, 1, Status.INVALID_QUEUE_IDENTIFIER, id="cq-taken"),
    pytest.param(0x05, 2 | 0 << 16, 1, Status.INVALID_QUEUE_SIZE, id="cq-size-1"),
    pytest.param(0x05, 2 | 0xFFFF << 16, 1, Status.INVALID_QUEUE_SIZE, id="cq-size-65536"),
    pytest.param(0x05, 2 | 15 << 16, 3 | 999 << 16, Status.INVALID_INTERRUPT_VECTOR, id="vector"),
    pytest.param(0x01, 2 | 15 << 16, 1 | 7 << 16, Status.COMPLETION_QUEUE_INVALID, id="sq-no-cq"),
    pytest.param(0x01, 2 | 15 << 16, 1, Status.INVALID_QUEUE_IDENTIFIER, id="sq-on-cq-0"),
    pytest.param(0x01, 1 | 15 << 16, 1 | 1 << 16, Status.INVALID_QUEUE_IDENTIFIER, id="sq-taken"),
    pytest.param(0x04, 1, 0, Status.INVALID_QUEUE_DELETION, id="cq-in-use"),
    pytest.param(0x04, 9, 0, Status.INVALID_QUEUE_IDENTIFIER, id="delete-no-cq"),
    pytest.param(0x00, 9, 0, Status.INVALID_QUEUE_IDENTIFIER, id="delete-no-sq"),
    pytest.param(0x00, 0, 0, Status.INVALID_QUEUE_IDENTIFIER, id="delete-admin"),
]


@pytest.mark.parametrize(("opcode", "cdw10", "cdw11", "status"), QUEUE_ERRORS)
def test_wrong_queues_get_their_status(
    host: Host, opcode: int, cdw10: int, cdw11: int, status: Status
) -> None:
    queue = host.create_queue_pair(qid=1)
    place = host.arena.allocate(1 << 20)
    sqe = SubmissionEntry(opcode=opcode, prp1=place.iova, cdw10=cdw10, cdw11=cdw11)
    found = status_of(host, sqe)
    if status == Status.INVALID_QUEUE_IDENTIFIER and opcode == 0x01 and cdw11 >> 16 == 0:
        assert found in (status, Status.COMPLETION_QUEUE_INVALID)
    else:
        assert found == status
    assert queue.read(1, 0, 1) == bytes(512)


def test_unknown_admin_opcode(host: Host) -> None:
    assert status_of(host, SubmissionEntry(opcode=0xC9)) == Status.INVALID_COMMAND_OPCODE


def test_abort_of_nothing_says_so(host: Host) -> None:
    queue = host.create_queue_pair()
    assert host.admin.abort(queue.qid, 77) is False


def test_event_requests_are_parked_and_limited(host: Host) -> None:
    for _ in range(host.controller.aerl + 1):
        host.admin.request_event()
    assert host.admin.events(timeout=0.1) == []
    sqe = SubmissionEntry(opcode=AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST)
    assert status_of(host, sqe) == Status.ASYNCHRONOUS_EVENT_REQUEST_LIMIT_EXCEEDED
    host.reset()
    host.admin.request_event()
    assert host.admin.events() == []


def test_doorbell_buffer_config_checks_its_pages(host: Host) -> None:
    page = host.arena.allocate(8192)
    for prp1, prp2 in ((page.iova + 4, page.iova + 4096), (page.iova, page.iova + 100)):
        sqe = SubmissionEntry(opcode=AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=prp1, prp2=prp2)
        assert status_of(host, sqe) in (Status.INVALID_FIELD_IN_COMMAND, Status.PRP_OFFSET_INVALID)


def test_registers(host: Host) -> None:
    registers = host.registers
    assert registers.capabilities.css & 1
    assert registers.max_entries >= 4096
    assert registers.status.rdy
    assert registers.read64(Register.ASQ) == host.admin.queue.memory.iova
    assert registers.read64(Register.ACQ) == host.admin.queue.completions.memory.iova
    aqa = registers.read32(Register.AQA)
    assert (aqa & 0xFFF, aqa >> 16) == (63, 63)
    assert host.client.region_read(REGION_BAR0, 0x1000, 8) == bytes(8)


def test_a_hundred_resets(serve: Serve, attach: Attach) -> None:
    host = attach(serve("memory:16M"))
    for number in range(100):
        host.reset(device=number % 10 == 0)
        if number % 5 == 0:
            assert host.create_queue_pair(8, interrupts=True).read(1, 0, 1) == bytes(512)


@pytest.mark.parametrize("abrupt", [False, True])
def test_shutdown_then_a_new_start(serve: Serve, attach: Attach, abrupt: bool) -> None:
    host = attach(serve("memory:16M"))
    host.create_queue_pair().write(1, 0, b"x" * 512)
    host.shut_down(abrupt=abrupt)
    assert host.registers.status.shst == 2
    host.reset()
    assert host.create_queue_pair().read(1, 0, 1) == b"x" * 512


def test_one_client_at_a_time(serve: Serve, attach: Attach) -> None:
    served = serve("memory:16M")
    host = attach(served)
    with pytest.raises((OSError, UserError)):
        Host.connect(served.socket(SOCKET), timeout=1)
    assert host.create_queue_pair().read(1, 0, 1) == bytes(512)


def test_admin_queue_under_load(serve: Serve, attach: Attach) -> None:
    host = attach(serve("memory:64M", "--iothreads", "2"))
    queue = host.create_queue_pair(64)
    for _ in range(20):
        assert run_load(host, [queue], LoadSpec(depth=16), ios=2000).clean
        host.admin.identify_controller()
        extra = host.create_queue_pair(4)
        host.delete_queue_pair(extra)


def test_directory_with_cntrl(serve: Serve) -> None:
    served = serve("memory:16M", "--socket", "{folder}/spdk/cntrl", "--and", "memory:16M")
    with Host.connect(served.folder / "spdk") as host:
        assert host.create_queue_pair().read(1, 0, 1) == bytes(512)
