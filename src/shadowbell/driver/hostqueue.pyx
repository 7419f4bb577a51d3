"""Submission and completion queues of the host driver, in C under Python."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.unistd cimport read, usleep

from shadowbell.driver.hostring cimport (
    Cq,
    Cqe,
    Doorbell,
    Sq,
    cq_advance,
    cq_peek,
    need_event,
    ring_doorbell,
    sb_nanoseconds,
    sb_pause,
    sq_next,
)


class ProtocolError(Exception):
    """The device wrote a completion that can't be: unknown queue, command or index."""


class DeviceGone(ConnectionError):
    """A doorbell could not be written, or the queue was taken away."""


def shadow_need_event(int event, int new, int old) -> bool:
    """Linux' comparison: does ringing ``new`` after ``old`` pass the device's EventIdx?"""
    return need_event(<uint16_t>event, <uint16_t>new, <uint16_t>old)


cdef void place_doorbell(Doorbell *db, int socket, uint64_t offset):
    # The posted message: header (REGION_WRITE, NO_REPLY), region access on BAR0, value.
    cdef uint16_t *half = <uint16_t *>db.message
    cdef uint32_t *word = <uint32_t *>db.message
    memset(db, 0, sizeof(Doorbell))
    db.socket = socket
    db.ioeventfd = -1
    half[1] = 10
    word[1] = 36
    word[2] = 0x10
    (<uint64_t *>&db.message[16])[0] = offset
    word[7] = 4


cdef dict doorbell_counts(Doorbell *db):
    return {
        "registers": db.registers,
        "wakeups": db.wakeups,
        "stores": db.stores,
        "updates": db.updates,
    }


cdef int wait_irq(Cq *cq, int timeout_ms) noexcept nogil:
    # Sleeps until the vector is raised (1), or the time is over (0).
    cdef pollfd waiting
    waiting.fd = cq.irq
    waiting.events = POLLIN
    waiting.revents = 0
    cdef int ready = poll(&waiting, 1, timeout_ms)
    if ready <= 0:
        return 0
    drain_irq(cq)
    return 1


cdef void drain_irq(Cq *cq) noexcept nogil:
    # The eventfd doesn't block; its value is the number of interrupts raised since.
    cdef uint64_t raised = 0
    if cq.irq >= 0 and read(cq.irq, &raised, 8) == 8:
        cq.interrupts += raised


cdef class CompletionRing:
    """A completion queue in the driver's memory.

    ``address`` points to ``entries`` zeroed slots of 16 bytes, ``irq`` is the vector's eventfd
    (non-blocking, owned by the caller) or -1 for polling. Not thread-safe.
    """

    def __cinit__(self, int qid, uint32_t entries, uintptr_t address, int socket,
                  uint64_t doorbell, int irq=-1):
        if not 0 <= qid < 256 or not 2 <= entries <= 65536:
            raise ValueError(f"no completion queue {qid} with {entries} entries")
        place_doorbell(&self.cq.db, socket, doorbell)
        self.qid = qid
        self.busy = 0
        self.cq.ring = <uint8_t *>address
        self.cq.entries = entries
        self.cq.head = 0
        self.cq.phase = 1
        self.cq.irq = irq
        self.rings = {}

    def shadow(self, uintptr_t value, uintptr_t event) -> None:
        """Use these Doorbell Buffer slots from now on (0, 0: none)."""
        self.cq.db.shadow = <uint32_t *>value
        self.cq.db.event = <uint32_t *>event
        if value:
            self.cq.db.shadow[0] = self.cq.db.current

    def map(self, uintptr_t register) -> None:
        """Write the register by a store to this address (0: by messages)."""
        self.cq.db.page = <uint32_t *>register

    def ioeventfd(self, int fd) -> None:
        """Ring the shadowed doorbell by this eventfd (-1: by the register)."""
        self.cq.db.ioeventfd = fd

    @property
    def entries(self) -> int:
        return self.cq.entries

    @property
    def head(self) -> int:
        return self.cq.head

    @property
    def counts(self) -> dict:
        """Doorbell counters: registers, wakeups, stores, updates."""
        return doorbell_counts(&self.cq.db)

    @property
    def interrupts(self) -> int:
        """Times the device raised this queue's vector."""
        drain_irq(&self.cq)
        return self.cq.interrupts

    def reap(self, int limit=65536) -> list:
        """Take what has completed: a list of (sqid, cid, status, dw0, dw1).

        Raises ProtocolError when the device completes what was never asked.
        """
        cdef Cqe *entry
        cdef Sq *sq
        cdef uint16_t cid
        cdef int count = 0
        found = []
        wrong = None
        while count < limit:
            entry = cq_peek(&self.cq)
            if entry == NULL:
                break
            count += 1
            cid = <uint16_t>entry.tail
            sq = self.senders[entry.sqid] if entry.sqid < 256 else NULL
            if sq == NULL:
                wrong = f"completion for unknown queue {entry.sqid}"
            elif cid >= sq.slots or not sq.busy[cid]:
                wrong = f"completion for command {cid} of queue {sq.qid}, which isn't running"
            elif entry.sqhd >= sq.entries:
                wrong = f"SQ head {entry.sqhd} in a queue of {sq.entries}"
            else:
                sq.head = entry.sqhd
                sq.busy[cid] = 0
                sq.free_cids[sq.n_free] = cid
                sq.n_free += 1
                found.append((sq.qid, cid, entry.tail >> 17, entry.dw0, entry.dw1))
            cq_advance(&self.cq)
        if count:
            ring_doorbell(&self.cq.db, self.cq.head)
            if self.cq.db.error:
                raise DeviceGone(self.cq.db.error, "the completion doorbell can't be written")
        if wrong is not None:
            raise ProtocolError(wrong)
        return found

    def wait(self, double timeout) -> bool:
        """Wait up to ``timeout`` seconds for a completion to be there; True when one is."""
        cdef uint64_t now = sb_nanoseconds()
        cdef uint64_t start = now
        cdef uint64_t end = now + <uint64_t>(timeout * 1e9)
        cdef int turns = 0
        cdef bint found = False
        with nogil:
            while True:
                if cq_peek(&self.cq) != NULL:
                    found = True
                    break
                turns += 1
                if turns & 63:
                    sb_pause()
                    continue
                now = sb_nanoseconds()
                if now >= end:
                    break
                if now - start < 50000:
                    continue
                # Long enough: sleep, in slices, so that a queue without its vector gets on.
                if self.cq.irq >= 0:
                    wait_irq(&self.cq, 20)
                else:
                    usleep(50)
        return found


cdef class SubmissionRing:
    """A submission queue in the driver's memory, completing to ``completions``.

    ``address`` points to ``entries`` slots of 64 bytes. At most ``entries - 1`` commands run.
    """

    def __cinit__(self, int qid, uint32_t entries, uintptr_t address, int socket,
                  uint64_t doorbell, CompletionRing completions):
        cdef uint32_t cid
        if not 0 <= qid < 256 or not 2 <= entries <= 65536:
            raise ValueError(f"no submission queue {qid} with {entries} entries")
        place_doorbell(&self.sq.db, socket, doorbell)
        self.qid = qid
        self.sq.qid = <uint16_t>qid
        self.sq.ring = <uint8_t *>address
        self.sq.entries = entries
        self.sq.slots = entries - 1
        self.sq.free_cids = <uint16_t *>calloc(entries, sizeof(uint16_t))
        self.sq.busy = <uint8_t *>calloc(entries, 1)
        if self.sq.free_cids == NULL or self.sq.busy == NULL:
            raise MemoryError
        for cid in range(self.sq.slots):
            self.sq.free_cids[cid] = <uint16_t>(self.sq.slots - 1 - cid)
        self.sq.n_free = self.sq.slots
        self.completions = completions
        completions.senders[qid] = &self.sq
        completions.rings[qid] = self

    def __dealloc__(self):
        free(self.sq.free_cids)
        free(self.sq.busy)

    def detach(self) -> None:
        """Leave the completion queue: completions for this one are wrong from now on."""
        self.sq.dead = 1
        self.completions.senders[self.qid] = NULL
        self.completions.rings.pop(self.qid, None)

    def shadow(self, uintptr_t value, uintptr_t event) -> None:
        """Use these Doorbell Buffer slots from now on (0, 0: none)."""
        self.sq.db.shadow = <uint32_t *>value
        self.sq.db.event = <uint32_t *>event
        if value:
            self.sq.db.shadow[0] = self.sq.db.current

    def map(self, uintptr_t register) -> None:
        """Write the register by a store to this address (0: by messages)."""
        self.sq.db.page = <uint32_t *>register

    def ioeventfd(self, int fd) -> None:
        """Ring the shadowed doorbell by this eventfd (-1: by the register)."""
        self.sq.db.ioeventfd = fd

    def kill(self) -> None:
        """Stop: from any thread; a load loop leaves without waiting for its commands."""
        self.sq.dead = 1

    @property
    def dead(self) -> bool:
        return self.sq.dead != 0

    @property
    def entries(self) -> int:
        return self.sq.entries

    @property
    def tail(self) -> int:
        return self.sq.tail

    @property
    def running(self) -> int:
        """Commands submitted and not completed."""
        return self.sq.slots - self.sq.n_free

    @property
    def room(self) -> int:
        """Commands that may be submitted now."""
        return self.sq.n_free

    @property
    def counts(self) -> dict:
        """Doorbell counters: registers, wakeups, stores, updates."""
        return doorbell_counts(&self.sq.db)

    def push(self, bytes sqe) -> int:
        """Put a 64-byte command into the ring, its identifier filled in; returns that.

        Doesn't ring. Raises BlockingIOError when every identifier is in use.
        """
        if len(sqe) != 64:
            raise ValueError("a submission queue entry has 64 bytes")
        if self.sq.dead:
            raise DeviceGone(f"queue {self.qid} is gone")
        if self.sq.n_free == 0:
            raise BlockingIOError(11, f"queue {self.qid} is full")
        self.sq.n_free -= 1
        cdef uint16_t cid = self.sq.free_cids[self.sq.n_free]
        cdef uint8_t *place = sq_next(&self.sq)
        memcpy(place, <const char *>sqe, 64)
        (<uint16_t *>place)[1] = cid
        self.sq.busy[cid] = 1
        return cid

    def ring(self) -> None:
        """Tell the device of everything pushed."""
        ring_doorbell(&self.sq.db, self.sq.tail)
        if self.sq.db.error:
            raise DeviceGone(self.sq.db.error, "the submission doorbell can't be written")

    def write_doorbell(self, uint32_t value) -> None:
        """Ring an arbitrary value (tests of the device's checks)."""
        ring_doorbell(&self.sq.db, value)
