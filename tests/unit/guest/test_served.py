"""The ledger file's sums."""

from shadowbell.guest.served import Ledger, _ledger


def queue(qid: int, commands: int, doorbells: int) -> dict[str, object]:
    return {
        "qid": qid,
        "commands": {"read": commands, "write": 1},
        "doorbells": doorbells,
        "shadow_finds": 2,
        "interrupts": 3,
    }


def test_io_queues_are_summed_and_the_admin_queue_left_out() -> None:
    ledger = _ledger([queue(0, 100, 100), queue(1, 9, 1), queue(-1, 29, 2)])
    assert ledger == Ledger(commands=40, doorbells=3, shadow_finds=4, interrupts=6)
    assert (ledger - ledger).doorbells_per_command == 0
