"""A load: its queues, commands and limits are set up, hostturn.pyx runs it, its counters are told."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from shadowbell.driver.histogram cimport BUCKETS
from shadowbell.driver.hostqueue cimport POLLIN, CompletionRing, SubmissionRing, drain_irq
from shadowbell.driver.hostring cimport sb_ticks
from shadowbell.driver.hostturn cimport turn
from shadowbell.driver.verifier cimport Verifier, mix

from shadowbell.driver.histogram import tick_nanoseconds


cdef dict counted(const uint64_t *histogram):
    return {i: histogram[i] for i in range(BUCKETS) if histogram[i]}


cdef class LoadLoop:
    """One thread's load over queues of one controller; made once, run once.

    ``rings``: the submission queues. ``slots``: for each, a list of (data address, PRP1, PRP2),
    one for every command to keep in flight. The data of a slot holds ``blocks`` LBAs. ``rate``
    (commands a second, 0: none) paces the starts; what the device held up is made up for by at
    most one burst of all slots. ``flush_every``: see LoadSpec.
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
                 double watchdog=0.0, uint64_t flush_every=0):
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
        load.flush_every = flush_every or <uint64_t>-1
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
        lane.until_flush = self.load.flush_every
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
            "flushes": load.done_flushes,
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
            "histogram": counted(load.histogram),
            "flush_histogram": counted(load.flush_histogram),
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
