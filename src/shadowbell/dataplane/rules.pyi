"""The compiled doorbell, pacing and interrupt rules, step by step, for tests and labs.

``entries`` are 2 to 65536; heads and tails are below them. Source: NVMe Base 2.0, section 5.8.
"""

from typing import Literal

def distance(start: int, end: int, entries: int) -> int:
    """Entries from start up to end on a ring."""

def schedstat(fd: int) -> tuple[int, int] | None:
    """Nanoseconds that a thread ran, and that it waited for a processor; None: not counted."""

def behind(index: int, entries: int) -> int:
    """The index before."""

def judge(waiting: int, unsignalled: int) -> Literal["drop", "raise", "hold"]:
    """What to do about unsignalled entries when the host hasn't taken the ``waiting`` last ones."""

def cache_lines() -> dict[str, tuple[set[int], set[int], set[int], float]]:
    """Of each structure, the cache lines of three groups of its fields, and its size in lines.

    The second group is what its own thread changes, the third what others change, or seldom.
    """

class Ring:
    """A submission queue's doorbell, shadowed, awake and empty at first.

    ``tail`` is the shadow doorbell: set it as a host does. ``stores`` counts EventIdx stores.
    Raises ValueError for a tail that the queue doesn't have.
    """

    def __init__(self, entries: int) -> None: ...
    @property
    def head(self) -> int: ...
    tail: int
    @property
    def eventidx(self) -> int: ...
    @property
    def stores(self) -> int: ...
    def consume(self, tail: int) -> None:
        """Take everything up to a tail that was read, and keep EventIdx out of reach."""
    def arm(self) -> bool:
        """Ask to be rung. False: there is work already."""
    def wake(self) -> None:
        """Take the armed EventIdx back."""

class Head:
    """A completion queue's doorbell, shadowed."""

    def __init__(self, entries: int) -> None: ...
    @property
    def eventidx(self) -> int: ...
    def ignore(self, head: int) -> None:
        """The head was read, and there is room."""
    def arm(self, head: int) -> None:
        """The head was read, and the queue is full."""

class Slot:
    """A doorbell's slot, and register writes that are taken beside it, on one thread."""

    shadowed: bool
    def __init__(self, shadowed: bool) -> None: ...
    @property
    def value(self) -> int: ...
    @property
    def host_stores(self) -> bool: ...
    def host_store(self, value: int) -> None: ...
    def take(self, value: int) -> None:
        """A register write arrived."""
    def read(self) -> int:
        """Read it as a submission queue's slot is read."""

class Pace:
    """How a thread waits between pieces of work; times in nanoseconds, the polling window too.

    ``waited``: how long the thread waited for a processor in all; None: the kernel doesn't say.
    """

    def __init__(self, poll_max_ns: int) -> None: ...
    def told(self, entries: int) -> None:
        """A host with interrupts was told of so many completions at once, or took them."""
    def looked(self, now: int, waited: int | None = None) -> None:
        """A look began; ``worked`` or ``rest`` tells what came of it."""
    def worked(self, found: int, now: int | None = None) -> None:
        """It found work, which is done ``now``, or at once."""
    def rest(
        self, now: int, waited: int | None = None, mapped: bool = False, held: bool = False
    ) -> tuple[Literal["poll", "nap", "sleep"], int]:
        """A look found none: what to do, and how long to nap."""
    def napped(self, asked: int, took: int) -> None:
        """A nap ended by its timer."""

class Moderation:
    """Whether a queue's first interrupts wait for more completions; times are nanoseconds."""

    @property
    def holding(self) -> bool: ...
    def told(self, now: int, entries: int, signalled: bool = True, alone: bool = False) -> None:
        """The host was told of so many entries, or took them without an interrupt.

        ``alone``: it has submitted nothing since the first of them was posted.
        """
    def held_until(self, entries: int, since: int, arrived: int) -> int:
        """Until when a first interrupt is held; 0: not at all.

        ``since``: its first entry was posted; ``arrived``: the host's last command.
        """

class Gathering:
    """How many completions of other threads' a thread sleeps for; times are nanoseconds."""

    def await_end(self) -> None:
        """A request is under way."""
    def has_ended(self, took: int) -> None:
        """One has ended. Raises ValueError when none is under way."""
    def must_look(self, now: int) -> bool: ...
    def look(self, now: int, ran: int, waited: int, taken: int) -> None:
        """How long it has run, and waited for a processor, and what it has taken, in all."""
    def rest(self) -> tuple[int, int]:
        """For how many to sleep (0: rest as the pace says), and how long at most (0: no limit)."""
