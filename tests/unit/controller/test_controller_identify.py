"""Identify (Base 2.0, 5.17; NVM Command Set 1.0, 4.1.5)."""

import pytest
from controller_fakes import FakeBackend, Host

from shadowbell.controller import Controller, Namespace
from shadowbell.nvme import NSID_ALL, AdminOpcode, Cns, IdentifyController, IdentifyNamespace
from shadowbell.nvme import Status as S
from shadowbell.nvme.identify import IdentifierType, NamespaceList, parse_descriptors

IDENTIFY = AdminOpcode.IDENTIFY


def test_controller(host: Host) -> None:
    """Base 2.0, figure 275."""
    raw = host.read(IDENTIFY, cdw10=Cns.CONTROLLER)
    ctrl = IdentifyController(raw)
    assert raw[4:24] == b"SB0001".ljust(20)
    assert raw[24:64] == b"shadowbell NVMe".ljust(40)
    assert raw[80:84] == bytes.fromhex("00000200")
    assert 4096 << ctrl.mdts >= 1 << 20
    assert (ctrl.sqes, ctrl.cqes) == (0x66, 0x44)
    assert ctrl.cntrltype == 1
    assert ctrl.oacs == 1 << 8
    assert ctrl.oncs == 0b1101_1101
    assert ctrl.vwc == 0b111
    assert (ctrl.awun, ctrl.awupf, ctrl.acwu) == (0, 0, 0)
    assert ctrl.sgls == 1
    assert (ctrl.acl, ctrl.aerl, ctrl.elpe, ctrl.npss) == (3, 3, 63, 0)
    assert ctrl.oaes == 1 << 8
    assert ctrl.nn >= 3
    assert ctrl.subnqn == "nqn.2026-11.io.shadowbell:SB0001"
    assert ctrl.tnvmcap == 2 << 20


def test_doorbell_buffer_config_is_told_only_when_on() -> None:
    host = Host(dbbuf=False)
    host.enable()
    assert IdentifyController(host.read(IDENTIFY, cdw10=1)).oacs == 0


def test_namespaces(host: Host) -> None:
    """NVM Command Set 1.0, 4.1.5.1: one LBA format, the namespace's own."""
    first = IdentifyNamespace(host.read(IDENTIFY, cdw10=Cns.NAMESPACE, nsid=1))
    assert (first.nsze, first.ncap, first.nuse) == (2048, 2048, 2048)
    assert (first.nlbaf, first.flbas, first.lbaf[0].lbads) == (0, 0, 9)
    assert (first.npwg, first.npdg) == (7, 7)
    assert first.dlfeat == 0b1001
    assert first.nsattr == 0
    third = IdentifyNamespace(host.read(IDENTIFY, cdw10=Cns.NAMESPACE, nsid=3))
    assert (third.nsze, third.lbaf[0].lbads, third.npwg) == (256, 12, 0)
    assert third.nsattr == 1


def test_without_discard_deallocated_blocks_promise_nothing() -> None:
    namespace = Namespace(1, FakeBackend(supports_discard=False), serial="S")
    assert namespace.identify().dlfeat == 0


def test_a_discard_that_may_leave_anything_promises_nothing() -> None:
    backend = FakeBackend()
    backend.discard_zeroes = False
    assert Namespace(1, backend, serial="S").identify().dlfeat == 0


@pytest.mark.parametrize(
    "cns",
    [Cns.NAMESPACE, Cns.IO_COMMAND_SET_NAMESPACE, Cns.IO_COMMAND_SET_INDEPENDENT_NAMESPACE],
)
def test_an_inactive_namespace_is_all_zero(host: Host, cns: Cns) -> None:
    """Base 2.0, 3.2.1.4."""
    assert host.read(IDENTIFY, cdw10=cns, nsid=2) == bytes(4096)


def test_active_lists(host: Host) -> None:
    """Base 2.0, 5.17.2.2: identifiers greater than NSID."""
    for cns in (Cns.ACTIVE_NAMESPACE_LIST, Cns.IO_COMMAND_SET_ACTIVE_NAMESPACE_LIST):
        found = [list(NamespaceList(host.read(IDENTIFY, cdw10=cns, nsid=n))) for n in (0, 1, 3)]
        assert found == [[1, 3], [3], []]


def test_identification_descriptors(host: Host) -> None:
    """Base 2.0, 5.17.2.3: names that stay over restarts and differ between namespaces."""
    cns = Cns.NAMESPACE_IDENTIFICATION_DESCRIPTORS
    raw = host.read(IDENTIFY, cdw10=cns, nsid=1)
    names = parse_descriptors(raw)
    assert {kind: len(name) for kind, name in names.items()} == {1: 8, 2: 16, 3: 16, 4: 1}
    again = Host()
    again.enable()
    assert again.read(IDENTIFY, cdw10=cns, nsid=1) == raw
    assert parse_descriptors(host.read(IDENTIFY, cdw10=cns, nsid=3))[1] != names[1]
    namespace = IdentifyNamespace(host.read(IDENTIFY, cdw10=0, nsid=1))
    assert namespace.eui64 == names[IdentifierType.EUI64]
    assert namespace.nguid == names[IdentifierType.NGUID]
    # Locally administered and not a group, in the first byte of each EUI-64's identifier.
    assert names[IdentifierType.EUI64][0] & 3 == names[IdentifierType.NGUID][8] & 3 == 2


def test_names_do_not_change_between_versions_of_ours() -> None:
    """A guest mounts by these: literal values hold the derivation still."""
    namespace = Namespace(1, FakeBackend(), serial="SB0001")
    assert namespace.eui64.hex() == "128a21b9e90897d9"
    assert namespace.nguid.hex() == "422cc2a42ad0f703d276714cfce8c52c"
    assert str(namespace.uuid) == "b21b441b-a1ee-85fc-a6cf-9f20a55089a7"


def test_command_set_structures(host: Host) -> None:
    """Base 2.0, 5.17.2.5 to 5.17.2.8 and 5.17.2.21."""
    assert host.read(IDENTIFY, cdw10=Cns.IO_COMMAND_SET_CONTROLLER) == bytes(4096)
    independent = host.read(IDENTIFY, cdw10=Cns.IO_COMMAND_SET_INDEPENDENT_NAMESPACE, nsid=3)
    assert (independent[8], independent[14]) == (1, 1)  # write protected, ready
    for cntid in (1, 0xFFFF):
        vectors = host.read(IDENTIFY, cdw10=Cns.IO_COMMAND_SET | cntid << 16)
        assert vectors == b"\x01" + bytes(4095)


NVM, ZNS = 0, 2 << 24


@pytest.mark.parametrize(
    ("cns", "nsid", "cdw11", "status"),
    [
        (Cns.NAMESPACE, 0, NVM, S.INVALID_NAMESPACE_OR_FORMAT),
        (Cns.NAMESPACE, 257, NVM, S.INVALID_NAMESPACE_OR_FORMAT),
        (Cns.NAMESPACE, NSID_ALL, NVM, S.INVALID_NAMESPACE_OR_FORMAT),
        (Cns.ACTIVE_NAMESPACE_LIST, NSID_ALL, NVM, S.INVALID_NAMESPACE_OR_FORMAT),
        (Cns.ACTIVE_NAMESPACE_LIST, NSID_ALL - 1, NVM, S.INVALID_NAMESPACE_OR_FORMAT),
        (Cns.NAMESPACE_IDENTIFICATION_DESCRIPTORS, 2, NVM, S.INVALID_NAMESPACE_OR_FORMAT),
        (Cns.NAMESPACE_IDENTIFICATION_DESCRIPTORS, NSID_ALL, NVM, S.INVALID_NAMESPACE_OR_FORMAT),
        (Cns.IO_COMMAND_SET_NAMESPACE, 0, NVM, S.INVALID_NAMESPACE_OR_FORMAT),
        (Cns.IO_COMMAND_SET_NAMESPACE, 1, ZNS, S.INVALID_FIELD_IN_COMMAND),
        (Cns.IO_COMMAND_SET_CONTROLLER, 0, ZNS, S.INVALID_FIELD_IN_COMMAND),
        (Cns.IO_COMMAND_SET_ACTIVE_NAMESPACE_LIST, 0, ZNS, S.INVALID_FIELD_IN_COMMAND),
        (Cns.IO_COMMAND_SET_ACTIVE_NAMESPACE_LIST, NSID_ALL, NVM, S.INVALID_NAMESPACE_OR_FORMAT),
        (Cns.IO_COMMAND_SET_INDEPENDENT_NAMESPACE, 0, NVM, S.INVALID_NAMESPACE_OR_FORMAT),
        (Cns.IO_COMMAND_SET | 7 << 16, 0, NVM, S.INVALID_FIELD_IN_COMMAND),
        (Cns.NVM_SET_LIST, 0, NVM, S.INVALID_FIELD_IN_COMMAND),
        (Cns.ALLOCATED_NAMESPACE_LIST, 0, NVM, S.INVALID_FIELD_IN_COMMAND),
        (0xFF, 0, NVM, S.INVALID_FIELD_IN_COMMAND),
    ],
)
def test_errors(host: Host, cns: int, nsid: int, cdw11: int, status: S) -> None:
    """Base 2.0, 3.2.1.2 to 3.2.1.5 and 5.17.1."""
    done = host.do(IDENTIFY, cdw10=cns, nsid=nsid, cdw11=cdw11)
    assert S(done.status) is status
    assert done.dnr


def test_data_that_can_not_be_written(host: Host) -> None:
    """Base 2.0, 4.1.1: memory that isn't there."""
    done = host.do(IDENTIFY, cdw10=1, prp1=1 << 40)
    assert S(done.status) is S.DATA_TRANSFER_ERROR


@pytest.mark.parametrize(
    ("serial", "model"), [("S" * 21, "model"), ("S", "m" * 41), ("\N{SNOWMAN}", "model")]
)
def test_what_identify_can_not_hold_is_refused(host: Host, serial: str, model: str) -> None:
    with pytest.raises(ValueError, match=r"longer|encode"):
        Controller(
            host.engine,
            serial=serial,
            model=model,
            namespaces=[],
            max_queues=1,
            dbbuf=True,
            vectors=2,
        )
