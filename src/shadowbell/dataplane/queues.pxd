from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from shadowbell.dataplane.includes.cpu cimport log2, store64
from shadowbell.dataplane.layout cimport CompletionQueue, SubmissionQueue, ThreadState


cdef enum:
    GATHERED = 4               # CQEs in a cache line


cdef inline void post_completion(CompletionQueue *cq, uint32_t dw0, uint32_t sq_head,
                                 uint16_t sqid, uint16_t cid, uint32_t status) noexcept nogil:
    """Write a CQE (NVMe Base 2.0, 4.2). Its slot was reserved when the command was fetched.

    A host that polls takes the line of its next entry away at each look, and getting it back for
    every entry costs more than a short command. So entries are gathered while enough commands are to
    come that the host can't run dry, and published when their line is full.
    """
    cdef uint32_t i = 2 * cq.gathered
    cq.entry[i] = dw0
    cq.entry[i + 1] = (<uint64_t> (sq_head & 0xFFFF) | <uint64_t> sqid << 16
                       | <uint64_t> cid << 32 | <uint64_t> (status << 1 | cq.phase) << 48)
    cq.gathered += 1
    cq.tail += 1
    if not cq.gather or cq.tail % GATHERED == 0 or cq.tail == cq.entries:
        publish(cq)
    if cq.tail == cq.entries:
        cq.tail = 0
        cq.phase ^= 1


cdef inline void publish(CompletionQueue *cq) noexcept nogil:
    """Store the gathered entries, which end at the tail and lie in one cache line.

    The half with the phase tag is stored last and released, so that whoever sees the new phase
    sees the whole entry.
    """
    cdef uint32_t first = cq.tail - cq.gathered
    cdef uint8_t *slot = cq.pages[first >> 8] + ((first & 255) << 4)
    cdef uint32_t i
    for i in range(cq.gathered):
        (<uint64_t *> (slot + 16 * i))[0] = cq.entry[2 * i]
        store64(slot + 16 * i + 8, cq.entry[2 * i + 1])
    cq.gathered = 0


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
