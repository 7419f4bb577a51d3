# What the data plane has to tell the control plane: rare, so a spin lock and a system call do.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from posix.unistd cimport write

from shadowbell.dataplane.includes.cpu cimport relax, store32, swap_if32
from shadowbell.dataplane.layout cimport EVENT_RING, EngineState, EventRecord


cdef inline void signal_fd(int fd) noexcept nogil:
    """Add one to an eventfd. It can only fail when it is full, and then it is readable anyway."""
    cdef uint64_t one = 1
    cdef ssize_t ignored = write(fd, &one, sizeof(one))


cdef inline void lock_events(EngineState *engine) noexcept nogil:
    while not swap_if32(&engine.event_lock, 0, 1):
        relax()


cdef inline void unlock_events(EngineState *engine) noexcept nogil:
    store32(&engine.event_lock, 0)


cdef inline void push_event(EngineState *engine, int kind, uint16_t qid, uint16_t cid,
                            uint32_t status, uint32_t nsid, uint64_t lba) noexcept nogil:
    cdef EventRecord *record
    cdef uint32_t before
    lock_events(engine)
    before = engine.event_count
    if before < EVENT_RING:
        record = &engine.events[before]
        record.kind = kind
        record.qid = qid
        record.cid = cid
        record.status = status
        record.nsid = nsid
        record.lba = lba
        engine.event_count += 1
    else:
        engine.events_lost += 1
    unlock_events(engine)
    if before == 0:
        signal_fd(engine.notify_fd)
