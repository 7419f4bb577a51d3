"""What happened on the I/O path, as Python sees it: events and the queues' counters."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from shadowbell.dataplane.dma cimport Memory
from shadowbell.dataplane.events cimport lock_events, unlock_events
from shadowbell.dataplane.layout cimport (
    EVENT_BUS_ERROR,
    EVENT_RING,
    HISTOGRAM_BUCKETS,
    OPCODES,
    PHASE_SHIFT,
    Counters,
    EngineState,
    EventRecord,
)

from shadowbell.dataplane.ledger import QueueLedger, bucket_ns, name_commands
from shadowbell.dataplane.notices import Event

cdef enum:
    WORK_BYTES = 8192

EVENT_KINDS = ("invalid-doorbell-register", "invalid-doorbell-value", "io-error", "bus-error")


cdef list take_events(EngineState *state, Memory memory):
    cdef EventRecord records[EVENT_RING]
    cdef EventRecord *record
    cdef uint32_t i, count
    # Copied first: nothing of Python's runs while an IOThread may wait for the lock.
    lock_events(state)
    count = state.event_count
    memcpy(records, state.events, count * sizeof(EventRecord))
    state.event_count = 0
    unlock_events(state)
    events = []
    for i in range(count):
        record = &records[i]
        if record.kind != EVENT_BUS_ERROR or memory.bus_error():
            events.append(Event(EVENT_KINDS[record.kind], record.qid, record.cid,
                                record.status & 0x7FFF, record.nsid, record.lba,
                                record.status >> PHASE_SHIFT))
    return events


cdef uint64_t work_done(EngineState *state, uint32_t cqid) noexcept:
    """What the submission queues of a completion queue have cost so far, in commands.

    Moving WORK_BYTES counts as a further command.
    """
    cdef uint64_t work = 0
    cdef Counters *c
    cdef uint32_t qid, i
    for qid in range(1, state.max_queues + 1):
        if state.sqs[qid] != NULL and state.sqs[qid].cq == state.cqs[cqid]:
            c = &state.counters[qid]
            work += (c.bytes_read + c.bytes_written) // WORK_BYTES
            for i in range(OPCODES):
                work += c.commands[i]
    return work


cdef object queue_ledger(EngineState *state, uint32_t qid):
    cdef Counters *c = &state.counters[qid]
    cdef bint served = state.sqs[qid] != NULL and state.sqs[qid].thread != NULL
    return QueueLedger(
        qid=qid,
        iothread=state.sqs[qid].thread.block.index if served else None,
        doorbells=c.doorbells,
        ioeventfd_wakeups=c.ioeventfd_wakeups,
        shadow_finds=c.shadow_finds,
        eventidx_stores=c.eventidx_stores,
        arms=c.arms,
        arms_lost=c.arms_lost,
        interrupts=c.interrupts,
        interrupts_suppressed=c.interrupts_suppressed,
        commands={"admin": c.commands[OPCODES - 1]} if qid == 0
        else name_commands(c.commands),
        bytes_read=c.bytes_read,
        bytes_written=c.bytes_written,
        errors=c.errors,
        media_errors=c.media_errors,
        latency=tuple(
            (bucket_ns(i), c.latency[i]) for i in range(HISTOGRAM_BUCKETS) if c.latency[i]
        ),
    )
