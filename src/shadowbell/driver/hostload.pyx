"""The load loop: keeps queues full of reads and writes, checks what comes back, counts."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.time cimport timespec

from shadowbell.driver.histogram cimport BUCKETS, bucket_of
from shadowbell.driver.hostqueue cimport (
    POLLIN,
    CompletionRing,
    SubmissionRing,
    drain_irq,
    pollfd,
)
from shadowbell.driver.hostring cimport (
    Cq,
    Cqe,
    cq_advance,
    cq_peek,
    ring_doorbell,
    sb_pause,
    sb_relaxed,
    sb_ticks,
    sq_next,
)
from shadowbell.driver.verifier cimport Verifier, mix

from shadowbell.driver.histogram import tick_nanoseconds

cdef extern from * nogil:
    """
    static inline uint64_t sb_scale(uint64_t random, uint64_t range)
    {
        return (uint64_t)(((unsigned __int128)random * range) >> 64);
    }
    """
    uint64_t sb_scale(uint64_t, uint64_t) noexcept

cdef extern from "<poll.h>" nogil:
    int ppoll(pollfd *, unsigned long, const timespec *, const void *)

cdef enum:
    SHORTEST_SLEEP_NS = 2000       # less is over before the timer is set
    LONGEST_LATE_TICKS = 0xFFFF    # some 20 us
    OPCODE_WRITE = 1
    OPCODE_READ = 2


cdef inline void start(Load *load, Lane *lane, Verifier check, uint64_t now) noexcept nogil:
    cdef uint16_t cid
    cdef Command *command
    cdef uint8_t *place
    cdef uint64_t unit, lba
    load.due += load.interval
    lane.n_ready -= 1
    cid = lane.ready[lane.n_ready]
    command = &lane.commands[cid]
    # xorshift64*; the low word decides on read or write, the whole on the place
    load.random ^= load.random >> 12
    load.random ^= load.random << 25
    load.random ^= load.random >> 27
    cdef uint64_t random = load.random * <uint64_t>0x2545f4914f6cdd1d
    if load.sequential:
        unit = load.cursor
        load.cursor += 1
        if load.cursor == load.units:
            load.cursor = 0
    else:
        unit = sb_scale(random, load.units)
    if load.owned != NULL:
        # One I/O at a time on a piece: else nobody could tell what a read should see.
        while load.owned[unit]:
            unit = unit + 1 if unit + 1 < load.units else 0
        load.owned[unit] = 1
    lba = load.first + unit * load.blocks
    command.unit = unit
    command.write = (random & 0xffff) < load.writes
    command.started = now
    if load.owned != NULL and command.write:
        check.begin(lba, load.blocks, command.data)
    place = sq_next(lane.sq)
    memcpy(place, command.sqe, 64)
    place[0] = OPCODE_WRITE if command.write else OPCODE_READ
    (<uint64_t *>place)[5] = lba
    lane.sq.busy[cid] = 1
    load.issued += 1
    load.running += 1


cdef inline void finish(Load *load, Cqe *entry, uint32_t tail, Verifier check,
                        uint64_t now) noexcept nogil:
    # The entry is in shared memory: each field is read once.
    cdef uint32_t sqid = entry.sqid
    cdef uint32_t sqhd = entry.sqhd
    cdef Lane *lane = load.by_qid[sqid] if sqid < 256 else NULL
    cdef uint16_t cid = <uint16_t>tail
    cdef Command *command
    cdef uint64_t lba
    cdef int64_t wrong
    if (lane == NULL or cid >= lane.sq.slots or not lane.sq.busy[cid]
            or sqhd >= lane.sq.entries):
        load.violations += 1
        return
    lane.sq.head = sqhd
    lane.sq.busy[cid] = 0
    lane.ready[lane.n_ready] = cid
    lane.n_ready += 1
    load.running -= 1
    command = &lane.commands[cid]
    load.histogram[bucket_of(now - command.started)] += 1
    if tail >> 17:
        load.errors += 1
        if load.errors == 1:
            load.first_error = tail >> 17
    elif command.write:
        load.done_writes += 1
    else:
        load.done_reads += 1
    if load.owned == NULL:
        return
    load.owned[command.unit] = 0
    if tail >> 17:
        return
    lba = load.first + command.unit * load.blocks
    if command.write:
        check.written(lba, load.blocks)
        return
    wrong = check.wrong(lba, load.blocks, command.data)
    if wrong >= 0:
        load.mismatches += 1
        if load.mismatches == 1:
            load.first_mismatch = wrong


cdef void rest(Load *load, uint64_t now) noexcept nogil:
    # Nothing moved. An eventfd keeps what was raised since the look into the queues, so there is
    # no gap between that look and this sleep; the slice is for stop() and kill().
    cdef uint32_t i
    cdef uint64_t wait
    cdef timespec pause
    if not load.sleep or (load.running and now - load.progress < load.spin):
        sb_pause()
        return
    wait = 20000000
    if load.interval and not load.stop:
        if load.due <= now:
            wait = 20000000 if load.running >= load.depth else 0
        else:
            wait = min(wait, <uint64_t>(<double>(load.due - now) * load.tick))
    if wait < SHORTEST_SLEEP_NS:
        sb_pause()
        return
    pause.tv_sec = 0
    pause.tv_nsec = <long>wait
    load.sleeps += 1
    if ppoll(load.vectors, load.n_cqs, &pause, NULL) > 0:
        for i in range(load.n_cqs):
            if load.vectors[i].revents:
                drain_irq(load.cqs[i])
                load.raised[i] = 1
    elif load.watchdog and load.running and now - load.progress > load.watchdog:
        find_missed(load)


cdef void find_missed(Load *load) noexcept nogil:
    # Nothing was raised for long: entries that are there were missed, and are looked at after all.
    cdef uint32_t i
    for i in range(load.n_cqs):
        if cq_peek(load.cqs[i]) != NULL:
            load.missed += 1
            load.raised[i] = 1


cdef inline void ring_head(Load *load, Cq *cq) noexcept nogil:
    ring_doorbell(&cq.db, cq.head)
    load.failed |= cq.db.error


cdef void ring_late(Load *load) noexcept nogil:
    # As if other processors had submitted while this one was between its last look and the head:
    # new commands may be completed by now, and it will not look again.
    cdef uint32_t i
    cdef uint64_t until
    for i in range(load.n_cqs):
        if load.late[i]:
            load.late[i] = 0
            until = sb_ticks() + ((load.random >> 8) & LONGEST_LATE_TICKS)
            while sb_ticks() < until:
                sb_pause()
            ring_head(load, load.cqs[i])


cdef void turn(Load *load, Verifier check) noexcept nogil:
    # Runs until it is over, or until pause_at.
    cdef uint64_t now, taken
    cdef uint32_t i, tail, begun
    cdef Cq *cq
    cdef Cqe *entry
    cdef Lane *lane
    while True:
        now = sb_ticks()
        taken = 0
        for i in range(load.n_cqs):
            if load.watchdog and not load.raised[i]:
                continue
            load.raised[i] = 0
            cq = load.cqs[i]
            begun = cq.head
            while True:
                entry = cq_peek(cq)
                if entry == NULL:
                    break
                tail = entry.tail
                finish(load, entry, tail, check, now)
                cq_advance(cq)
                taken += 1
                if cq.head == begun:
                    break
            if cq.head != begun:
                if load.watchdog and load.random & <uint64_t>(1 << 40):
                    load.late[i] = 1
                else:
                    ring_head(load, cq)
        if taken:
            load.progress = now
        if load.deadline and now >= load.deadline:
            load.stop = 1
        if load.interval and now > load.due + load.arrears:
            load.due = now - load.arrears
        for i in range(load.n_lanes):
            lane = &load.lanes[i]
            begun = lane.sq.tail
            while (not load.stop and lane.n_ready
                   and (load.limit == 0 or load.issued < load.limit)
                   and load.due <= now):
                start(load, lane, check, now)
            if lane.sq.tail != begun:
                ring_doorbell(&lane.sq.db, lane.sq.tail)
                load.failed |= lane.sq.db.error
            load.dead |= <int>sb_relaxed(&lane.sq.dead)
        if load.watchdog and taken:
            ring_late(load)
        if load.limit and load.issued >= load.limit:
            load.stop = 1
        if load.dead or load.failed or (load.stop and load.running == 0):
            return
        if taken == 0:
            if now - load.progress > load.stall and load.running:
                load.stalled = 1
                return
            rest(load, now)
        if now >= load.pause_at:
            return


cdef class LoadLoop:
    """One thread's load over queues of one controller; made once, run once.

    ``rings``: the submission queues. ``slots``: for each, a list of (data address, PRP1, PRP2),
    one for every command to keep in flight. The data of a slot holds ``blocks`` LBAs. ``rate``
    (commands a second, 0: none) paces the starts; what the device held up is made up for by at
    most one burst of all slots.
    """

    cdef Load *load
    cdef list rings
    cdef Verifier check
    cdef readonly dict results

    def __cinit__(self):
        self.load = <Load *>calloc(1, sizeof(Load))
        if self.load == NULL:
            raise MemoryError

    def __init__(self, list rings, list slots, *, uint32_t nsid, uint64_t first, uint64_t units,
                 uint64_t blocks, uint32_t writes, bint sequential, uint64_t seed,
                 Verifier check=None, bint sleep=False, double spin=0.0, double rate=0.0,
                 double watchdog=0.0):
        cdef Load *load = self.load
        cdef uint32_t number = 0
        cdef SubmissionRing ring
        cdef set seen = set()
        if not 0 < len(rings) <= MAX_RINGS or len(slots) != len(rings):
            raise ValueError("a load needs 1 to 128 queues, with slots for each")
        depth = sum(len(places) for places in slots)
        if units == 0 or (check is not None and units <= depth):
            raise ValueError("the range is too small for this block size and queue depth")
        if check is not None and first + units * blocks > check.blocks:
            raise ValueError("the range is larger than what the verifier knows")
        self.rings = list(rings)
        self.check = check
        self.results = {}
        load.first, load.units, load.blocks = first, units, blocks
        load.writes, load.sequential, load.random = writes, sequential, mix(seed | 1) | 1
        load.sleep = sleep
        load.tick = tick_nanoseconds()
        load.spin = <uint64_t>(spin * 1e9 / load.tick)
        load.depth = depth
        if watchdog and (spin or not sleep):
            raise ValueError("a watchdog is for loads that sleep on interrupts at once")
        load.watchdog = <uint64_t>(watchdog * 1e9 / tick_nanoseconds())
        if rate:
            if rate < 1:
                raise ValueError("a load starts at least one I/O a second")
            load.interval = max(1, <uint64_t>(1e9 / load.tick / rate))
            load.arrears = load.interval * load.depth
        load.first_mismatch = -1
        if check is not None:
            load.owned = <uint8_t *>calloc(units, 1)
            if load.owned == NULL:
                raise MemoryError
        for ring, places in zip(rings, slots, strict=True):
            self.add_lane(number, ring, places, nsid, blocks)
            number += 1
            load.n_lanes = number
            if id(ring.completions) not in seen:
                seen.add(id(ring.completions))
                load.cqs[load.n_cqs] = &ring.completions.cq
                load.vectors[load.n_cqs].fd = ring.completions.cq.irq
                load.vectors[load.n_cqs].events = POLLIN
                load.n_cqs += 1
                if sleep and ring.completions.cq.irq < 0:
                    raise ValueError(f"queue {ring.qid} has no interrupt to sleep on")

    cdef add_lane(self, uint32_t number, SubmissionRing ring, list places, uint32_t nsid,
                  uint64_t blocks):
        cdef Lane *lane = &self.load.lanes[number]
        cdef Command *command
        cdef uint16_t cid
        if not 0 < len(places) <= ring.sq.n_free:
            raise ValueError(f"queue {ring.qid} has room for {ring.sq.n_free} commands")
        lane.sq = &ring.sq
        lane.commands = <Command *>calloc(ring.sq.slots, sizeof(Command))
        lane.ready = <uint16_t *>calloc(ring.sq.slots, 2)
        if lane.commands == NULL or lane.ready == NULL:
            raise MemoryError
        for address, prp1, prp2 in places:
            cid = ring.sq.free_cids[ring.sq.n_free - 1 - lane.n_ready]
            command = &lane.commands[cid]
            command.data = <uint8_t *><uintptr_t>address
            (<uint16_t *>command.sqe)[1] = cid
            (<uint32_t *>command.sqe)[1] = nsid
            (<uint64_t *>command.sqe)[3] = prp1
            (<uint64_t *>command.sqe)[4] = prp2
            (<uint32_t *>command.sqe)[12] = <uint32_t>(blocks - 1)
            lane.ready[lane.n_ready] = cid
            lane.n_ready += 1
        self.load.by_qid[ring.qid] = lane

    def __dealloc__(self):
        cdef uint32_t i
        if self.load == NULL:
            return
        for i in range(MAX_RINGS):
            free(self.load.lanes[i].commands)
            free(self.load.lanes[i].ready)
        free(self.load.owned)
        free(self.load)

    def stop(self) -> None:
        """From another thread: start nothing more, wait for what runs."""
        self.load.stop = 1

    def run(self, uint64_t limit=0, double seconds=0.0, double stall=10.0) -> dict:
        """Run until ``limit`` I/Os or ``seconds`` (0: no limit), or stop(), or a queue's end.

        Returns the counters. Doesn't raise for what the device does: see ``errors``,
        ``mismatches``, ``violations``, ``lost`` and ``broken``.
        """
        cdef Load *load = self.load
        cdef double tick = load.tick
        cdef uint64_t begin = sb_ticks()
        cdef SubmissionRing ring
        cdef CompletionRing queue
        cdef uint32_t i
        cdef bint over = False
        load.limit = limit
        load.deadline = begin + <uint64_t>(seconds * 1e9 / tick) if seconds > 0 else 0
        load.stall = <uint64_t>(stall * 1e9 / tick)
        load.progress = begin
        load.due = begin if load.interval else 0
        before = self.counts()
        self.enter(1)
        try:
            while not over:
                load.pause_at = sb_ticks() + <uint64_t>(50e6 / tick)
                with nogil:
                    turn(load, self.check)
                over = bool(load.dead or load.failed or load.stalled
                            or (load.stop and load.running == 0))
                PyErr_CheckSignals()
        finally:
            self.enter(-1)
            self.give_back()
        elapsed = (load.progress if load.done_reads + load.done_writes else sb_ticks()) - begin
        for i in range(load.n_cqs):
            drain_irq(load.cqs[i])
        after = self.counts()
        self.results = {name: after[name] - before[name] for name in after} | {
            "seconds": elapsed * tick / 1e9,
            "reads": load.done_reads,
            "writes": load.done_writes,
            "errors": load.errors,
            "first_error": load.first_error,
            "mismatches": load.mismatches,
            "first_mismatch": load.first_mismatch,
            "violations": load.violations,
            "lost": load.running,
            "broken": load.dead != 0 or load.failed != 0,
            "stalled": load.stalled != 0,
            "sleeps": load.sleeps,
            "missed": load.missed,
            "histogram": [(i, load.histogram[i]) for i in range(BUCKETS) if load.histogram[i]],
        }
        return self.results

    cdef enter(self, int step):
        cdef SubmissionRing ring
        for ring in self.rings:
            if step > 0 and ring.completions.busy and ring.completions.owner is not self:
                raise RuntimeError(f"another load runs on queue {ring.qid}'s completions")
            ring.completions.busy += step
            ring.completions.owner = self if ring.completions.busy else None

    cdef give_back(self):
        # The stack wasn't touched by the loop. Commands that still run keep their identifiers.
        cdef uint32_t i, j
        cdef uint32_t kept
        cdef Lane *lane
        for i in range(self.load.n_lanes):
            lane = &self.load.lanes[i]
            kept = 0
            for j in range(lane.sq.n_free):
                if not lane.sq.busy[lane.sq.free_cids[j]]:
                    lane.sq.free_cids[kept] = lane.sq.free_cids[j]
                    kept += 1
            lane.sq.n_free = kept

    cdef dict counts(self):
        cdef SubmissionRing ring
        cdef CompletionRing queue
        total = {"registers": 0, "wakeups": 0, "stores": 0, "updates": 0, "interrupts": 0}
        queues = {id(ring.completions): ring.completions for ring in self.rings}
        for ring in self.rings:
            for name, value in ring.counts.items():
                total[name] += value
        for queue in queues.values():
            for name, value in queue.counts.items():
                total[name] += value
            total["interrupts"] += queue.interrupts
        return total
