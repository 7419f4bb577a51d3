"""What servers leave for each other in an image's metadata."""

from __future__ import annotations

from cluster import Cluster
from disks import MIB

from shadowbell.block.rbd import RbdBackend
from shadowbell.block.rbd_opening import open_rbd


def test_a_note_is_read_as_it_was_written(ceph: Cluster) -> None:
    """Nothing of an earlier, longer one comes with it: a token of our own must be known as such."""
    ceph.create_image("notes", 8 * MIB)
    backend = open_rbd(f"{ceph.of('notes')}?conf={ceph.conf}", lba=512, read_only=False)
    assert isinstance(backend, RbdBackend)
    try:
        assert backend.read_note("note") is None
        for length in (255, 100, 30, 1, 250):
            backend.write_note("note", "x" * length)
            assert backend.read_note("note") == "x" * length
        backend.write_note("note", None)
        assert backend.read_note("note") is None
    finally:
        backend.close()
