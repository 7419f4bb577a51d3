"""The guest's channels with literal bytes: what a slow, rebooting or dead guest sends."""

import base64
import json
import socket
import threading
from collections.abc import Iterator, Mapping

import pytest

from shadowbell.guest.agent import Agent, AgentError
from shadowbell.guest.qmp import Qmp, QmpError

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def encoded(text: str) -> bytes:
    return base64.b64encode(text.encode())


def test_a_command_goes_out_and_its_result_comes_back(pair: Pair) -> None:
    pair[1].sendall(b"1 3 " + encoded("two\nlines") + b"\n")
    assert Agent(pair[0]).run("false", 5) == (3, "two\nlines")
    assert pair[1].recv(100) == b"1 5 " + encoded("false") + b"\n"


def test_late_cut_and_strange_lines_are_passed_over(pair: Pair) -> None:
    agent = Agent(pair[0])
    pair[1].sendall(b"0 0 " + encoded("late") + b"\ngarb\n1 x y\n\n1 0 \n")
    assert agent.run("true", 5) == (0, "")


def test_hello_tells_the_kernel(pair: Pair) -> None:
    pair[1].sendall(b"hello 0 " + encoded("6.1.0\n") + b"\n")
    assert Agent(pair[0]).wait_hello(5) == "6.1.0"


def test_silence_and_hang_up_are_errors(pair: Pair) -> None:
    agent = Agent(pair[0])
    with pytest.raises(AgentError, match="in time"):
        agent.wait_hello(0.01)
    pair[1].close()
    with pytest.raises(AgentError, match="gone"):
        agent.run("true", 5)


def qemu(end: socket.socket, *messages: Mapping[str, object]) -> threading.Thread:
    def answer() -> None:
        stream = end.makefile("rwb", buffering=0)
        stream.write(b'{"QMP": {}}\r\n')
        stream.readline()
        stream.write(b'{"return": {}}\r\n')
        for message in messages:
            stream.write(json.dumps(message).encode() + b"\r\n")
        stream.close()

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


def test_qmp_keeps_events_that_come_before_an_answer(pair: Pair) -> None:
    event = {"event": "DEVICE_DELETED", "data": {"device": "hot"}}
    other = {"event": "DEVICE_DELETED", "data": {"path": "/x"}}
    thread = qemu(pair[1], other, event, {"return": {"status": "running"}})
    qmp = Qmp(pair[0], timeout=5)
    assert qmp.execute("query-status") == {"status": "running"}
    assert qmp.wait_event("DEVICE_DELETED", 5, device="hot") == event
    thread.join()


def test_qmp_errors_carry_qemus_words(pair: Pair) -> None:
    thread = qemu(pair[1], {"error": {"class": "GenericError", "desc": "no such device"}})
    qmp = Qmp(pair[0], timeout=5)
    with pytest.raises(QmpError, match="device_del: no such device"):
        qmp.execute("device_del", id="hot")
    thread.join()


def test_qmp_notices_that_qemu_is_gone(pair: Pair) -> None:
    thread = qemu(pair[1])
    qmp = Qmp(pair[0], timeout=5)
    thread.join()
    pair[1].close()
    with pytest.raises(QmpError, match="gone"):
        qmp.wait_event("SHUTDOWN", 5)
