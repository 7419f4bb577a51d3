"""nvme-cli, as an administrator would use it in the guest."""

import json
from typing import Any

import pytest

from shadowbell.guest import Guest
from shadowbell.guest.demonstration import find_namespace

DOORBELL_BUFFER = 1 << 8  # OACS


@pytest.fixture(scope="module")
def device(booted: Guest) -> str:
    return find_namespace(booted, "shadow")


@pytest.fixture(scope="module")
def controller(device: str) -> str:
    return device[: device.rindex("n")]


def said(guest: Guest, command: str) -> dict[str, Any]:
    output = guest.check(f"nvme {command} -o json")
    value: dict[str, Any] = json.loads(output[output.index("{") :])
    return value


def test_identify_controller(guest: Guest, controller: str) -> None:
    identity = said(guest, f"id-ctrl {controller}")
    assert identity["sn"].strip() == "shadow"
    assert identity["mn"].strip() == "shadowbell NVMe"
    assert identity["oacs"] & DOORBELL_BUFFER
    assert identity["mdts"] == 0 or (4096 << identity["mdts"]) >= 1 << 20
    assert identity["ver"] == 0x20000


def test_doorbell_buffer_is_not_offered_without_it(guest: Guest) -> None:
    device = find_namespace(guest, "trap")
    identity = said(guest, f"id-ctrl {device[: device.rindex('n')]}")
    assert not identity["oacs"] & DOORBELL_BUFFER


def test_identify_namespace(guest: Guest, device: str) -> None:
    identity = said(guest, f"id-ns {device}")
    assert identity["nsze"] == (64 << 20) // 512
    assert identity["lbafs"][identity["flbas"] & 15]["ds"] == 9
    assert int(identity["nguid"], 16)


def test_smart_log_counts(guest: Guest, controller: str, device: str) -> None:
    before = said(guest, f"smart-log {controller}")
    guest.check(f"dd if={device} of=/dev/null bs=1M count=8 iflag=direct")
    after = said(guest, f"smart-log {controller}")
    assert before["critical_warning"] == 0
    assert after["host_read_commands"] > before["host_read_commands"]
    assert after["data_units_read"] > before["data_units_read"]


def test_error_log(guest: Guest, controller: str) -> None:
    assert said(guest, f"error-log {controller}")["errors"]


@pytest.mark.parametrize("feature", [1, 2, 4, 5, 6, 7, 8, 9, 10, 11])
def test_features(guest: Guest, controller: str, feature: int) -> None:
    for select in (0, 1, 3):  # current, default, supported capabilities
        guest.check(f"nvme get-feature {controller} -n 1 -f {feature} -s {select}")


def test_list_subsystems(guest: Guest, controller: str) -> None:
    listing = guest.check("nvme list-subsys")
    assert f"+- {controller.removeprefix('/dev/')} pcie" in listing
    assert "nqn." in listing


def test_logs_and_lists(guest: Guest, controller: str, device: str) -> None:
    for command in ("fw-log", "effects-log -c 0", "changed-ns-list-log", "list-ns"):
        guest.check(f"nvme {command} {controller}")
    for command in ("ns-descs", "get-ns-id", "flush", "verify -s 0 -c 7"):
        name, _, options = command.partition(" ")
        guest.check(f"nvme {name} {device} {options}")


def test_compare_write_zeroes_and_deallocate(guest: Guest, device: str) -> None:
    guest.check("head -c 4096 /dev/urandom >/tmp/data; head -c 4096 /dev/zero >/tmp/zeros")
    blocks = "-s 64 -c 7 -z 4096"
    guest.check(f"nvme write {device} {blocks} -d /tmp/data")
    guest.check(f"nvme compare {device} {blocks} -d /tmp/data")
    code, output = guest.run(f"nvme compare {device} {blocks} -d /tmp/zeros")
    assert code != 0
    assert "Compare Failure" in output
    guest.check(f"nvme write-zeroes {device} -s 64 -c 7")
    guest.check(f"nvme compare {device} {blocks} -d /tmp/zeros")
    guest.check(f"nvme write {device} {blocks} -d /tmp/data")
    guest.check(f"nvme dsm {device} -d -s 64 -b 8")
    guest.check(f"nvme compare {device} {blocks} -d /tmp/zeros")


def test_wrong_commands_get_the_specification_status(guest: Guest, device: str) -> None:
    code, output = guest.run(f"nvme read {device} -s 999999999 -c 0 -z 512 -d /dev/null")
    assert code != 0
    assert "LBA Out of Range" in output
    code, output = guest.run(f"nvme admin-passthru {device[: device.rindex('n')]} --opcode=0xfe")
    assert code != 0
    assert "Invalid Command Opcode" in output
