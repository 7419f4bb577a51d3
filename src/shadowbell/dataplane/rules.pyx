"""The compiled doorbell, pacing and interrupt rules, step by step, for tests and labs.

Each class holds a structure of the data plane's with memory words of its own, and calls the very
functions of doorbells.pxd, pacing.pxd, interrupts.pxd, moderation.pxd and gathering.pxd that the
IOThreads inline.
"""

from libc.stdint cimport uint32_t, uint64_t

from shadowbell.block cimport gathering
from shadowbell.dataplane cimport doorbells, interrupts, moderation, pacing
from shadowbell.dataplane.includes.cpu cimport load32, store32
from shadowbell.dataplane.layout cimport CompletionQueue, Counters, SubmissionQueue
from shadowbell.dataplane.lines cimport LINE
from shadowbell.dataplane.schedstat cimport read_schedstat


def distance(uint32_t start, uint32_t end, uint32_t entries):
    return doorbells.distance(start, end, entries)


def schedstat(int fd):
    cdef uint64_t ran = 0, waited = 0
    return (ran, waited) if read_schedstat(fd, &ran, &waited) else None


def behind(uint32_t index, uint32_t entries):
    return doorbells.behind(index, entries)


def judge(uint32_t waiting, uint32_t unsignalled):
    return {interrupts.DROP: "drop", interrupts.RAISE: "raise", interrupts.HOLD: "hold"}[
        interrupts.judge(waiting, unsignalled)]


cdef inline Py_ssize_t line(const void *structure, const void *field):
    return (<const char *> field - <const char *> structure) // LINE


def cache_lines():
    """See rules.pyi; of each group the first and the last field."""
    cdef SubmissionQueue sq
    cdef CompletionQueue cq
    cdef Counters counters
    return {
        "submission queue": (
            {line(&sq, &sq.tail_doorbell), line(&sq, &sq.qid)},
            {line(&sq, &sq.head), line(&sq, &sq.host_stores)},
            {line(&sq, &sq.thread), line(&sq, &sq.ioeventfd_cancelled)},
            sizeof(sq) / LINE,
        ),
        "completion queue": (
            {line(&cq, &cq.entry), line(&cq, &cq.entry[7])},
            {line(&cq, &cq.pages), line(&cq, &cq.urgent)},
            {line(&cq, &cq.engine), line(&cq, &cq.posted)},
            sizeof(cq) / LINE,
        ),
        "completion queue, once a round": (
            {line(&cq, &cq.urgent), line(&cq, &cq.entry[7])},
            {line(&cq, &cq.head_doorbell), line(&cq, &cq.line_of_rounds),
             line(&cq, &cq.moderation), line(&cq, &cq.reachable)},
            {line(&cq, &cq.engine), line(&cq, &cq.posted)},
            sizeof(cq) / LINE,
        ),
        "counters": (
            {line(&counters, &counters.commands), line(&counters, &counters.latency[255])},
            {line(&counters, &counters.bytes_read), line(&counters, &counters.arms_lost)},
            {line(&counters, &counters.doorbells), line(&counters, &counters.media_errors)},
            sizeof(counters) / LINE,
        ),
    }


cdef class Ring:
    """A submission queue's doorbell, shadowed, awake and empty at first."""

    cdef SubmissionQueue sq
    cdef Counters counters
    cdef uint32_t tail_word
    cdef uint32_t eventidx_word

    def __cinit__(self, uint32_t entries):
        if not 2 <= entries <= 65536:
            raise ValueError("a queue has 2 to 65536 entries")
        self.sq.entries = entries
        self.sq.counters = &self.counters
        self.sq.tail_doorbell = &self.tail_word
        self.sq.tail_eventidx = &self.eventidx_word
        doorbells.wake(&self.sq)

    @property
    def head(self):
        return self.sq.head

    @property
    def tail(self):
        return load32(&self.tail_word)

    @tail.setter
    def tail(self, uint32_t value):
        if value >= self.sq.entries:
            raise ValueError("no such tail")
        store32(&self.tail_word, value)

    @property
    def eventidx(self):
        return load32(&self.eventidx_word)

    @property
    def stores(self):
        return self.counters.eventidx_stores

    def consume(self, uint32_t tail):
        """What serve() does with a tail it has read: take all, then keep EventIdx out of reach."""
        if tail >= self.sq.entries:
            raise ValueError("no such tail")
        cdef uint32_t before = self.sq.head
        self.sq.head = tail
        doorbells.stay_awake(&self.sq, before, tail)

    def arm(self):
        return doorbells.arm(&self.sq)

    def wake(self):
        doorbells.wake(&self.sq)


cdef class Head:
    """A completion queue's doorbell, shadowed."""

    cdef CompletionQueue cq
    cdef uint32_t eventidx_word

    def __cinit__(self, uint32_t entries):
        if not 2 <= entries <= 65536:
            raise ValueError("a queue has 2 to 65536 entries")
        self.cq.entries = entries
        self.cq.head_eventidx = &self.eventidx_word
        doorbells.ignore_head(&self.cq)

    @property
    def eventidx(self):
        return load32(&self.eventidx_word)

    def ignore(self, uint32_t head):
        """The head was read, and there is room."""
        self.cq.head = head
        doorbells.ignore_head(&self.cq)

    def arm(self, uint32_t head):
        """The head was read, and the queue is full."""
        self.cq.head = head
        doorbells.arm_completions(&self.cq)


cdef class Slot:
    """A doorbell's slot, and register writes that are taken beside it."""

    cdef readonly bint shadowed
    cdef uint32_t word
    cdef uint32_t stored_word
    cdef uint32_t posted_word
    cdef bint stores

    def __cinit__(self, bint shadowed):
        self.shadowed = shadowed

    @property
    def value(self):
        return load32(&self.word)

    @property
    def host_stores(self):
        return self.stores

    def host_store(self, uint32_t value):
        store32(&self.word, value)

    def take(self, uint32_t value):
        """A register write arrived, and the queue's thread takes it."""
        doorbells.post_register(&self.word, self.shadowed, &self.posted_word, value)
        self.read()

    def read(self):
        """As serve() reads it: a value that isn't ours says that the host stores."""
        return doorbells.read_slot(&self.word, self.shadowed, &self.stored_word, &self.stores,
                                   &self.posted_word)


cdef class Pace:
    """How a thread waits; a tick is a nanosecond."""

    cdef pacing.Pace pace

    def __cinit__(self, uint64_t poll_max_ns):
        pacing.begin_pace(&self.pace, poll_max_ns, 1 << 20, 1 << 20)

    def looked(self, uint64_t now, waited=None):
        if pacing.was_away(&self.pace, now):
            pacing.returned(&self.pace, now, pacing.UNKNOWN if waited is None else waited)

    def worked(self, uint64_t found, now=None):
        pacing.worked(&self.pace, found, found if now is None else now)

    def rest(self, uint64_t now, waited=None, bint mapped=False, bint held=False):
        cdef uint64_t nap = 0
        cdef int rest = pacing.how_to_rest(&self.pace, now, True, mapped, held, &nap)
        if rest != pacing.REST_POLL and waited is not None and pacing.waits_are_old(&self.pace, now):
            pacing.note_waits(&self.pace, now, waited)
        return ("poll", "nap", "sleep")[rest], nap

    def told(self, uint32_t entries):
        pacing.told(&self.pace, entries)

    def napped(self, uint64_t asked, uint64_t took):
        pacing.napped(&self.pace, asked, took)


cdef class Moderation:
    """Whether a queue's first interrupts wait; a tick is a nanosecond."""

    cdef moderation.Moderation state

    @property
    def holding(self):
        return self.state.stance != moderation.PLAIN

    def told(self, uint64_t now, uint32_t entries, bint signalled=True, bint alone=False):
        moderation.moderate(&self.state, now, moderation.WINDOW_NS, entries, signalled, alone)

    def held_until(self, uint32_t entries, uint64_t since, uint64_t arrived):
        return moderation.first_hold(&self.state, entries, since, arrived)


cdef class Gathering:
    """How many completions of other threads' a thread sleeps for."""

    cdef gathering.Gathering state

    def await_end(self):
        gathering.await_end(&self.state)

    def has_ended(self, uint64_t took):
        if self.state.awaited == 0:
            raise ValueError("nothing is awaited")
        gathering.has_ended(&self.state, took)

    def must_look(self, uint64_t now):
        return gathering.must_look(&self.state, now)

    def look(self, uint64_t now, uint64_t ran, uint64_t waited, uint32_t taken):
        gathering.look(&self.state, now, ran, waited, taken)

    def rest(self):
        cdef uint32_t share = gathering.share_to_await(&self.state)
        return share, gathering.longest_wait(&self.state, share)
