"""The load loop: keeps queues full of reads, writes and Flushes, checks what comes back, counts."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport timespec

from shadowbell.driver.histogram cimport bucket_of
from shadowbell.driver.hostload cimport (
    OPCODE_FLUSH,
    OPCODE_READ,
    OPCODE_WRITE,
    Command,
    Lane,
    Load,
)
from shadowbell.driver.hostqueue cimport drain_irq, pollfd
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
from shadowbell.driver.verifier cimport Verifier

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


cdef inline Command *take(Load *load, Lane *lane, uint64_t now) noexcept nogil:
    cdef uint16_t cid
    cdef Command *command
    lane.n_ready -= 1
    cid = lane.ready[lane.n_ready]
    command = &lane.commands[cid]
    command.started = now
    lane.sq.busy[cid] = 1
    load.running += 1
    return command


cdef void start_flush(Load *load, Lane *lane, uint64_t now) noexcept nogil:
    cdef Command *command = take(load, lane, now)
    cdef uint8_t *place = sq_next(lane.sq)
    command.opcode = OPCODE_FLUSH
    memcpy(place, command.sqe, 8)  # its identifier and namespace; the rest is reserved
    memset(place + 8, 0, 56)
    place[0] = OPCODE_FLUSH
    lane.until_flush = load.flush_every


cdef inline void start(Load *load, Lane *lane, Verifier check, uint64_t now) noexcept nogil:
    cdef Command *command = take(load, lane, now)
    cdef uint8_t *place
    cdef uint64_t unit, lba
    cdef bint write
    load.due += load.interval
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
    write = (random & 0xffff) < load.writes
    command.unit = unit
    command.opcode = OPCODE_WRITE if write else OPCODE_READ
    if load.owned != NULL and write:
        check.begin(lba, load.blocks, command.data)
    place = sq_next(lane.sq)
    memcpy(place, command.sqe, 64)
    place[0] = command.opcode
    (<uint64_t *>place)[5] = lba
    lane.until_flush -= write
    load.issued += 1


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
    if command.opcode == OPCODE_FLUSH:
        load.flush_histogram[bucket_of(now - command.started)] += 1
    else:
        load.histogram[bucket_of(now - command.started)] += 1
    if tail >> 17:
        load.errors += 1
        if load.errors == 1:
            load.first_error = tail >> 17
    elif command.opcode == OPCODE_WRITE:
        load.done_writes += 1
    elif command.opcode == OPCODE_READ:
        load.done_reads += 1
    else:
        load.done_flushes += 1
    if load.owned == NULL or command.opcode == OPCODE_FLUSH:
        return
    load.owned[command.unit] = 0
    if tail >> 17:
        return
    lba = load.first + command.unit * load.blocks
    if command.opcode == OPCODE_WRITE:
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
    """Run until it is over, or until pause_at."""
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
                   and (load.limit == 0 or load.issued < load.limit)):
                if lane.until_flush == 0:
                    start_flush(load, lane, now)
                elif load.due <= now:
                    start(load, lane, check, now)
                else:
                    break
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
