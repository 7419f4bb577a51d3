from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from shadowbell.dataplane.includes.cpu cimport log2, store64
from shadowbell.dataplane.layout cimport CompletionQueue, SubmissionQueue, ThreadState


cdef inline void post_completion(CompletionQueue *cq, uint32_t dw0, uint32_t sq_head,
                                 uint16_t sqid, uint16_t cid, uint32_t status) noexcept nogil:
    """Write a CQE (NVMe Base 2.0, 4.2). Its slot was reserved when the command was fetched.

    The half with the phase tag is stored last and released, so that whoever sees the new phase
    sees the whole entry.
    """
    cdef uint8_t *slot = cq.pages[cq.tail >> 8] + ((cq.tail & 255) << 4)
    (<uint64_t *> slot)[0] = dw0
    store64(slot + 8, <uint64_t> (sq_head & 0xFFFF) | <uint64_t> sqid << 16
            | <uint64_t> cid << 32 | <uint64_t> (status << 1 | cq.phase) << 48)
    cq.tail += 1
    if cq.tail == cq.entries:
        cq.tail = 0
        cq.phase ^= 1


cdef inline uint32_t latency_bucket(uint64_t ns) noexcept nogil:
    """Log-linear: four buckets an octave; the inverse is in ledger.py."""
    cdef uint32_t octave = log2(ns)
    if ns < 4:
        return <uint32_t> ns
    return (octave - 1) * 4 + <uint32_t> (ns >> (octave - 2) & 3)


cdef inline uint64_t ticks_to_ns(ThreadState *thread, uint64_t ticks) noexcept nogil:
    return ticks * thread.pace.ns_factor >> 20


cdef uint32_t serve(ThreadState *thread, SubmissionQueue *sq) noexcept nogil
cdef uint32_t completion_room(CompletionQueue *cq) noexcept nogil
