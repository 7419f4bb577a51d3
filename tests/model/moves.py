"""A queue moves from IOThread A to IOThread B while a third takes doorbell messages for it.

Memory order is as in `submission`: stores wait in each thread's own buffer; a fence, an atomic
exchange and a system call wait until it is empty. The doorbell is a register (no shadow, so the
message is the only hint).

With a command under way A's release waits for its end, asleep, and the control plane may call it
off at any time: whichever A sees first counts, and only A says which. A command that is `stuck`
never ends. Several commands, and those of other queues, only make a release later. Keeping a queue
needs no fence of its own here: A tells of it, by a system call, before it looks at the doorbell.

Parts of the model: `ring_queue` and `kick` of `dataplane/kick.pxd` (the messenger), `release`,
`keep` and `adopt` of `handover.pyx`, `run`, `take_kicks`, `settle` and `rest` of `loop.pyx` (A and
B), and `post` of `iothread.pyx` (the control plane).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

NOBODY = 0
A, B = 1, 2


class Server(NamedTuple):
    """An IOThread: where it is in its round, and what only it sees."""

    # "top", "kicks", "serve", "rest", "look", "last", "asleep", "kept", "adopt", "adopted"
    at: str = "top"
    has: bool = False  # the queue is in its list
    active: bool = False
    waits: bool = False  # the round's try at the operation left it waiting
    buffer: tuple[tuple[str, int], ...] = ()


class State(NamedTuple):
    """Memory, the messenger, the control plane and both IOThreads."""

    # memory
    slot: int = 0
    thread: int = A
    rung: int = 0
    kicked_a: int = 0
    kicked_b: int = 0
    sleeping_a: int = 0
    sleeping_b: int = 0
    op_a: int = 0
    op_b: int = 0
    abandoned: int = 0
    # eventfds
    signal_a: bool = False
    signal_b: bool = False
    # the messenger: how many messages it took, and where it is with the last
    sent: int = 0
    at: str = "idle"  # "stored", "fenced", "rings", "kicks", "kicked"
    found: int = NOBODY
    buffer: tuple[tuple[str, int], ...] = ()
    # the control plane
    control: str = (
        "start"  # "releasing", "calling", "called", "released", "adopting", "end", "stays"
    )
    told: str = ""  # what A said of the release: "released", "kept"
    control_buffer: tuple[tuple[str, int], ...] = ()
    # a command of the queue's, on A
    under_way: bool = False
    ended: bool = False  # and A's ring says so
    head: int = 0
    a: Server = Server(has=True, active=True)
    b: Server = Server()


@dataclass(frozen=True)
class Moving:
    """``messages``: doorbell messages, at any time. The fences can be left out."""

    messages: int = 2
    ring_fence: bool = True
    adopt_fence: bool = True
    clear_first: bool = True  # rung is cleared before the queue has its thread
    command: str = ""  # "ends", "stuck": one is under way, and the move may be called off
    keep_looks: bool = True  # who keeps the queue looks at its doorbell
    call_fence: bool = True
    call_kicks: bool = True
    last_try: bool = True  # who goes to sleep looks for the call once more
    call_asks: bool = True  # who called it off asks what became of it

    def initial(self) -> State:
        if not self.command:
            return State()
        # B's rounds before it has the queue change nothing here: spare the states.
        return State(under_way=True, b=Server(at="asleep"), sleeping_b=1)

    def wrong(self, s: State) -> str | None:
        still = s.at == "idle" and not (s.buffer or s.a.buffer or s.b.buffer or s.control_buffer)
        rest = all(
            server.at == "asleep" and not signal
            for server, signal in ((s.a, s.signal_a), (s.b, s.signal_b))
        )
        rest = rest and not (s.under_way and s.ended)  # which wakes A
        if still and rest and s.control in ("start", "end", "stays") and s.slot != s.head:
            return f"LOST: both sleep at head {s.head}, the doorbell says {s.slot}"
        if still and rest and s.control == "called" and not s.told:
            return "STUCK: a sleeps and doesn't hear that the move is called off"
        if s.a.active and s.b.active:
            return "TWO WRITERS: both poll the queue"
        return None

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        if self.command == "ends" and s.under_way and not s.ended:
            yield "the command ends", s._replace(ended=True)
        yield from self._messenger(s)
        yield from self._control(s)
        for name in ("a", "b"):
            server: Server = getattr(s, name)
            if server.buffer:
                (word, value), *left = server.buffer
                after = s._replace(**{name: server._replace(buffer=tuple(left))})  # type: ignore[arg-type]
                yield f"{name}: {word} = {value} reaches memory", _store(after, word, value)
            yield from self._serve(s, name, server)

    # --- whoever takes the client's messages: ring_queue() and kick()

    def _messenger(self, s: State) -> Iterator[tuple[str, State]]:
        if s.buffer:
            word, value = s.buffer[0]
            after = s._replace(buffer=s.buffer[1:])
            yield f"messenger: {word} = {value} reaches memory", _store(after, word, value)
        if s.at == "idle" and s.sent < self.messages:
            number = s.sent + 1
            after = s._replace(sent=number, at="stored", buffer=(*s.buffer, ("slot", number)))
            yield f"messenger stores doorbell {number}", after
        elif s.at == "stored" and (not self.ring_fence or not s.buffer):
            yield "messenger fences", s._replace(at="fenced")
        elif s.at == "fenced":
            at = "rings" if s.thread != NOBODY else "idle"
            yield f"messenger finds thread {s.thread}", s._replace(at=at, found=s.thread)
        elif s.at == "rings":
            kicked = "kicked_a" if s.found == A else "kicked_b"
            after = s._replace(at="kicks", buffer=(*s.buffer, ("rung", 1), (kicked, 1)))
            yield f"messenger rings {s.found}", after
        elif s.at == "kicks" and not s.buffer:
            yield "messenger fences again", s._replace(at="kicked")
        elif s.at == "kicked":
            name = "a" if s.found == A else "b"
            after = s._replace(at="idle", found=NOBODY)
            if getattr(s, f"sleeping_{name}"):
                after = after._replace(**{f"signal_{name}": True})  # type: ignore[arg-type]
            yield f"messenger kicks {name}", after

    # --- the control plane: Engine.move_queue()

    def _control(self, s: State) -> Iterator[tuple[str, State]]:
        if s.control_buffer:
            (word, value), *left = s.control_buffer
            after = s._replace(control_buffer=tuple(left))
            yield f"control: {word} = {value} reaches memory", _store(after, word, value)
        if s.control == "start":
            after = s._replace(control="releasing", op_a=1)
            yield (
                "control asks a to release",
                after._replace(signal_a=True) if s.sleeping_a else after,
            )
        elif s.control == "releasing" and s.told:
            yield "control hears that it is released", s._replace(control="released")
        elif s.control == "releasing" and self.command:
            buffer = (*s.control_buffer, ("abandoned", 1))
            yield "control calls it off", s._replace(control="calling", control_buffer=buffer)
        elif s.control == "calling" and not (self.call_fence and s.control_buffer):
            rung = self.call_kicks and bool(s.sleeping_a)
            yield "control kicks a", s._replace(control="called", signal_a=s.signal_a or rung)
        elif s.control == "called" and (s.told or not self.call_asks):
            control = "released" if self.call_asks and s.told == "released" else "stays"
            yield f"control hears {s.told}", s._replace(control=control)
        elif s.control == "released":
            after = s._replace(control="adopting", op_b=1)
            yield (
                "control asks b to adopt",
                after._replace(signal_b=True) if s.sleeping_b else after,
            )

    # --- an IOThread: run()

    def _serve(self, s: State, name: str, server: Server) -> Iterator[tuple[str, State]]:
        def become(state: State, **changes: object) -> State:
            now: Server = getattr(state, name)
            return state._replace(**{name: now._replace(**changes)})  # type: ignore[arg-type]

        me = A if name == "a" else B
        empty = not server.buffer
        if server.at == "top":
            if getattr(s, f"op_{name}"):
                yield from self._operate(s, name, server)
            else:
                yield f"{name} starts a round", become(s, at="kicks", waits=False)
        elif server.at == "kept" and empty:  # telling of it is a system call
            after = s._replace(op_a=0, told="kept")
            yield "a tells that it keeps the queue", become(after, at="kicks")
        elif server.at == "adopt" and (not self.adopt_fence or empty):
            yield "b fences", become(s, at="adopted")
        elif server.at == "adopted":
            late = () if self.clear_first else (("rung", 0),)
            after = become(s, at="serve", has=True, active=True, buffer=(*server.buffer, *late))
            yield "b activates the queue", after._replace(control="end")
        elif server.at == "kicks":
            if not getattr(s, f"kicked_{name}"):
                yield f"{name} isn't kicked", become(s, at="serve")
            elif empty:  # an exchange
                after = s._replace(**{f"kicked_{name}": 0})  # type: ignore[arg-type]
                if server.has and _own(s, server, me) and s.rung:
                    after = become(after._replace(rung=0), active=True)
                yield f"{name} takes kicks", become(after, at="serve")
        elif server.at == "serve":
            if name == "a" and s.under_way and s.ended:
                yield "a reaps the command", become(s._replace(under_way=False), at="top")
            elif server.active and s.slot != s.head:
                yield f"{name} consumes up to {s.slot}", become(s._replace(head=s.slot), at="top")
            else:
                yield (
                    f"{name} finds nothing, rests",
                    _put(become(s, at="rest"), name, "sleeping", 1),
                )
                if server.active:  # polls others for long: settle() without a fence before
                    yield f"{name} retires the queue", become(s, at="top", active=False)
        elif server.at == "rest" and empty:
            yield f"{name} fences", become(s, at="look")
        elif server.at == "look":
            if server.active and s.slot != s.head:
                yield f"{name} finds work", _put(become(s, at="top"), name, "sleeping", 0)
            else:
                yield f"{name} settles", become(s, at="last", active=False)
        elif server.at == "last":
            called = (
                s.abandoned if self.last_try else 0
            )  # then it is kept, which the next round does
            posted = getattr(s, f"op_{name}") and (not server.waits or called)
            if getattr(s, f"kicked_{name}") or posted:
                yield f"{name} stays awake", _put(become(s, at="top"), name, "sleeping", 0)
            else:
                yield f"{name} SLEEPS", become(s, at="asleep")
        elif server.at == "asleep" and name == "a" and s.under_way and s.ended:
            yield "a wakes at the command's end", _put(become(s, at="top"), "a", "sleeping", 0)
        elif server.at == "asleep" and getattr(s, f"signal_{name}"):
            after = s._replace(**{f"signal_{name}": False})  # type: ignore[arg-type]
            yield f"{name} wakes", _put(become(after, at="top"), name, "sleeping", 0)

    def _operate(self, s: State, name: str, server: Server) -> Iterator[tuple[str, State]]:
        if name == "a" and server.has and _own(s, server, A):
            buffer = (*server.buffer, ("thread", NOBODY))
            yield "a lets go", s._replace(a=server._replace(active=False, buffer=buffer))
        elif name == "a" and server.has and not s.under_way:
            yield "a forgets the queue", s._replace(a=server._replace(has=False))
        elif name == "a" and server.has and s.abandoned:
            buffer = (*server.buffer, ("thread", A))
            kept = server._replace(at="kept", active=self.keep_looks, buffer=buffer)
            yield "a keeps the queue", s._replace(a=kept)
        elif name == "a" and server.has:
            yield "a waits for the command", s._replace(a=server._replace(at="kicks", waits=True))
        elif name == "a" and not server.buffer:  # telling of it is a system call
            told = s._replace(op_a=0, told="released")
            yield "a tells that it released the queue", told._replace(a=server._replace(at="kicks"))
        elif name == "b":
            first = (("rung", 0),) if self.clear_first else ()
            buffer = (*server.buffer, *first, ("thread", B))
            yield "b adopts", s._replace(op_b=0, b=server._replace(at="adopt", buffer=buffer))


def _own(s: State, server: Server, me: int) -> bool:
    """What the thread itself reads: its own store, if that is still on its way."""
    mine = [value for word, value in server.buffer if word == "thread"]
    return (mine[-1] if mine else s.thread) == me


def _put(s: State, name: str, word: str, value: int) -> State:
    server: Server = getattr(s, name)
    buffer = (*server.buffer, (f"{word}_{name}", value))
    return s._replace(**{name: server._replace(buffer=buffer)})  # type: ignore[arg-type]


def _store(s: State, word: str, value: int) -> State:
    return s._replace(**{word: value})  # type: ignore[arg-type]
