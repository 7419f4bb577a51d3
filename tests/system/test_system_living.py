"""A running server whose namespaces come, go and change under a host."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from living import MIB, changed, done, loaded, namespaces, refused, status_of, watch

from serving import Attach, Serve
from shadowbell.driver import CommandError, LoadSpec, QueuePair
from shadowbell.nvme import Feature, Status
from shadowbell.nvme.identify import IdentifierType

# --- resizing -----------------------------------------------------------------------------------


def test_a_file_that_is_truncated_is_noticed(serve: Serve, attach: Attach) -> None:
    served = serve("{folder}/disk.img", image=8 * MIB)
    host = attach(served)
    watch(host)
    queue = host.create_queue_pair()
    os.truncate(served.folder / "disk.img", 16 * MIB)
    assert changed(host) == [1]
    assert host.admin.identify_namespace(1).nsze == 16 * MIB // 512
    queue.write(1, 16 * MIB // 512 - 1, b"end" + bytes(509))
    os.truncate(served.folder / "disk.img", 4 * MIB + 100)
    assert changed(host) == [1]
    identify = host.admin.identify_namespace(1)
    assert identify.nsze == identify.ncap == 4 * MIB // 512
    assert host.admin.identify_controller().tnvmcap == 4 * MIB
    with pytest.raises(CommandError) as caught:
        queue.read(1, 4 * MIB // 512, 1)
    assert status_of(caught) == Status.LBA_OUT_OF_RANGE
    assert queue.read(1, 4 * MIB // 512 - 1, 1) == bytes(512)


def test_resizing_by_command(serve: Serve, attach: Attach) -> None:
    served = serve("memory:8M", "null:1M,lba=4096", "{folder}/disk.img", image=MIB)
    host = attach(served)
    watch(host)
    queue = host.create_queue_pair()
    queue.write(1, 0, b"first" + bytes(507))
    queue.write(1, 5000, b"gone" + bytes(508))
    for nsid, size in ((1, 2 * MIB + 512), (1, 8 * MIB), (2, 4 * MIB), (3, 2 * MIB)):
        assert done(served, "resize", str(nsid), str(size)) == f"namespace {nsid} is {size} bytes\n"
        assert changed(host) == [nsid]
        assert host.admin.identify_namespace(nsid).nsze == size // host.lba_size(nsid)
    assert queue.read(1, 0, 1) == b"first" + bytes(507)
    assert queue.read(1, 4096, 2048) == bytes(MIB)
    assert (served.folder / "disk.img").stat().st_size == 2 * MIB
    assert "loses data" in refused(served, "resize", "3", "1M")
    os.truncate(served.folder / "disk.img", MIB)
    assert done(served, "resize", "3") == f"namespace 3 is {MIB} bytes\n"
    done(served, "resize", "3")
    assert changed(host) == [3]
    assert host.admin.events(timeout=0.2) == []


def test_an_empty_file_keeps_its_namespace(serve: Serve, attach: Attach) -> None:
    """Nothing left is how a device that went away looks: its commands tell by themselves."""
    served = serve("{folder}/disk.img", image=MIB)
    queue = attach(served).create_queue_pair()
    os.truncate(served.folder / "disk.img", 0)
    done(served, "resize", "1")
    with pytest.raises(CommandError) as caught:
        queue.read(1, 0, 1)
    assert status_of(caught) == Status.UNRECOVERED_READ_ERROR


@pytest.mark.parametrize("kind", ["memory:8M", "{folder}/disk.img"])
def test_resizing_under_load(serve: Serve, attach: Attach, kind: str) -> None:
    served = serve(kind, "memory:8M", "--iothreads", "2", image=8 * MIB)
    host = attach(served)
    half = LoadSpec(pattern="randrw", depth=16, length=4 * MIB // 512)
    with (
        loaded(host, half) as kept,
        loaded(host, LoadSpec(depth=8, nsid=2)) as other,
        loaded(host, LoadSpec(depth=8, first=4 * MIB // 512)) as beyond,
    ):
        for _ in range(10):
            for size in (4, 8):
                if "memory" in kind:
                    done(served, "resize", "1", f"{size}M")
                else:
                    os.truncate(served.folder / "disk.img", size * MIB)
                    done(served, "resize", "1")
    assert kept.clean
    assert other.clean
    assert kept.ios
    assert other.ios
    assert beyond.lost == beyond.violations == 0
    assert beyond.errors == 0 or beyond.first_error & 0x7FF in (
        Status.LBA_OUT_OF_RANGE,
        Status.UNRECOVERED_READ_ERROR,  # between the truncate and our seeing it
    )


# --- adding and removing ------------------------------------------------------------------------


def test_a_namespace_comes_and_goes(serve: Serve, attach: Attach) -> None:
    served = serve("memory:8M", image=MIB)
    host = attach(served)
    watch(host)
    queue = host.create_queue_pair()
    assert done(served, "add-namespace", f"{served.folder}/disk.img") == "namespace 2 added\n"
    assert changed(host) == [2]
    assert host.admin.active_namespaces() == [1, 2]
    queue.write(2, 7, b"seven" + bytes(507))
    done(served, "remove-namespace", "2")
    assert changed(host) == [2]
    assert host.admin.active_namespaces() == [1]
    assert host.admin.identify_namespace(2).nsze == 0
    with pytest.raises(CommandError) as caught:
        queue.read(2, 7, 1)
    # Base 2.0, 3.2.1.4: what is sent to an inactive namespace.
    assert status_of(caught) == Status.INVALID_FIELD_IN_COMMAND
    assert caught.value.completion.dnr
    with open(served.folder / "disk.img", "rb") as image:
        assert os.pread(image.fileno(), 5, 7 * 512) == b"seven"
    assert host.controller.nn == host.admin.identify_controller().nn == 256


def test_another_disk_never_has_an_earlier_ones_names(serve: Serve, attach: Attach) -> None:
    served = serve("memory:8M", "{folder}/disk.img", image=MIB)
    host = attach(served)
    path = f"{served.folder}/disk.img"
    names = []
    for spec in (path, "memory:1M", path):
        done(served, "remove-namespace", "2")
        assert done(served, "add-namespace", spec, "--nsid", "2") == "namespace 2 added\n"
        names.append(host.admin.namespace_descriptors(2))
    done(served, "remove-namespace", "2")
    assert done(served, "add-namespace", "memory:1M") == "namespace 3 added\n"
    assert names[0] == names[2]
    for kind in (IdentifierType.EUI64, IdentifierType.NGUID, IdentifierType.UUID):
        assert names[0][kind] != names[1][kind]


def test_an_image_is_free_once_its_namespace_is_gone(serve: Serve) -> None:
    served = serve("memory:1M", "{folder}/disk.img", image=MIB)
    path = f"{served.folder}/disk.img"
    assert "locked" in refused(served, "add-namespace", path)
    done(served, "remove-namespace", "2")
    done(served, "add-namespace", path)


def test_all_namespaces_may_go(serve: Serve, attach: Attach) -> None:
    served = serve("memory:1M")
    host = attach(served)
    done(served, "remove-namespace", "1")
    assert host.admin.active_namespaces() == []
    host.create_queue_pair().flush(0xFFFFFFFF)
    done(served, "add-namespace", "memory:1M")
    assert list(namespaces(served)) == [2]


def test_adding_and_removing_under_load(serve: Serve, attach: Attach) -> None:
    served = serve("memory:8M", "memory:8M", "--iothreads", "2")
    host = attach(served)
    with (
        loaded(host, LoadSpec(pattern="randrw", depth=16)) as kept,
        loaded(host, LoadSpec(depth=16, nsid=2)) as removed,
    ):
        for _ in range(10):
            done(served, "remove-namespace", "2")
            done(served, "add-namespace", "memory:8M", "--nsid", "2")
    assert kept.clean
    assert kept.ios
    assert removed.lost == removed.violations == removed.mismatches == 0
    assert removed.errors == 0 or removed.first_error & 0x7FF == Status.INVALID_FIELD_IN_COMMAND


# --- write protection ---------------------------------------------------------------------------


def refuses_writes(queue: QueuePair, nsid: int = 1) -> bool:
    """Whether every command that would change the namespace gets the status that says so."""
    found = set()
    writes: list[Callable[[], None]] = [
        lambda: queue.write(nsid, 0, bytes(512)),
        lambda: queue.write_zeroes(nsid, 0, 1),
        lambda: queue.dataset_management(nsid, [(0, 1)]),
    ]
    for write in writes:
        try:
            write()
            found.add(0)
        except CommandError as error:
            found.add(error.status)
    queue.read(nsid, 0, 1)
    queue.flush(nsid)
    assert found in ({0}, {Status.NAMESPACE_IS_WRITE_PROTECTED})
    return found != {0}


def test_write_protection_by_the_host(serve: Serve, attach: Attach) -> None:
    served = serve("memory:1M", "memory:1M")
    host = attach(served)
    watch(host)
    queue = host.create_queue_pair()
    feature = Feature.NAMESPACE_WRITE_PROTECTION_CONFIG
    for state in (1, 0, 2):
        host.admin.set_feature(feature, state, nsid=1)
        assert refuses_writes(queue) == bool(state)
        assert host.admin.identify_namespace(1).nsattr == bool(state)
        assert not refuses_writes(queue, 2)
    assert namespaces(served)[1]["write_protect"] == "until-power-cycle"
    with pytest.raises(CommandError) as caught:
        host.admin.set_feature(feature, 0, nsid=1)
    assert status_of(caught) == Status.FEATURE_NOT_CHANGEABLE
    host.reset()
    assert refuses_writes(host.create_queue_pair())
    assert host.admin.events() == []  # it knows what it asked for
    host.detach()
    again = attach(served)
    assert not refuses_writes(again.create_queue_pair())


def test_write_protection_by_the_operator(serve: Serve, attach: Attach) -> None:
    served = serve("{folder}/disk.img", "memory:1M,ro", image=MIB)
    host = attach(served)
    watch(host)
    queue = host.create_queue_pair()
    for state in ("protect", "until-power-cycle", "none"):
        done(served, "write-protect", "1", state)
        assert changed(host) == [1]
        assert refuses_writes(queue) == (state != "none")
        assert namespaces(served)[1]["write_protect"] == state
    done(served, "write-protect", "1", "none")
    assert host.admin.events(timeout=0.1) == []
    assert "read-only" in refused(served, "write-protect", "2", "none")
