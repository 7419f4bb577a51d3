"""A Ceph cluster for all tests of this folder: `make test-ceph` runs them, `make test` doesn't."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing_programs
from disks import Attach, Disk, MakeDisk, Serve

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    named = [Path(argument.partition("::")[0]).absolute() for argument in config.args]
    return None if any(path == HERE or HERE in path.parents for path in named) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    missing = missing_programs() if mine else []
    if missing and os.environ.get("CI"):
        pytest.exit(f"CI needs Ceph: {', '.join(missing)} not found", returncode=1)
    for item in mine:
        item.add_marker(pytest.mark.ceph)
        if missing:
            reason = f"no Ceph here ({', '.join(missing)}): tools/setup ceph installs it"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def ceph(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster. Its folder with all logs is kept when a test failed."""
    with Cluster() as cluster:
        yield cluster
        if request.session.testsfailed:
            cluster.keep = True
            sys.stderr.write(f"\nCeph's logs: {cluster.folder}\n")


numbers = itertools.count()


@pytest.fixture
def make_disk(ceph: Cluster, serve: Serve, attach: Attach) -> MakeDisk:
    """``make_disk(size)``: a new image, served and attached to."""

    def make(size: int, *options: str, object_size: str = "4M", lba: int = 512) -> Disk:
        name = f"disk{next(numbers)}"
        ceph.create_image(name, size, object_size=object_size)
        query = "&".join((f"conf={ceph.conf}", *options))
        served = serve(f"rbd:{ceph.of(name)}?{query},lba={lba}")
        host = attach(served)
        return Disk(name, served, host, host.create_queue_pair(64), lba)

    return make
