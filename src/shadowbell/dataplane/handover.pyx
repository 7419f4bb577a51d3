"""Moving a completion queue, with every submission queue that uses it, to another IOThread.

The control plane has the old thread release the group and then the new one adopt it. All other
queues are served meanwhile. Why nothing is lost, done twice or written by two:

- Releasing, the old thread takes the queues from those it polls, so it fetches nothing more; it lets
  go when the last of their commands has its completion entry, the last interrupt is raised and its
  ring doesn't read their ioeventfds any more. Until then all is the old thread's, from then on the
  new one's: a completion queue and a doorbell word have one writer at any time. The mailboxes order
  what the one wrote before what the other reads.
- A doorbell message that arrives meanwhile stores its value first, then looks for the queue's thread
  (ring_queue in kick.pxd), with a fence between. Adopting makes the new thread the queue's first,
  then looks at the doorbell, with a fence between. So either the one finds the thread and rings it,
  or the other finds the value. Who still saw the old thread rings that for nothing.
- An ioeventfd that is written meanwhile keeps its count for the new thread's ring; a read of the old
  ring's that it ended belongs to a value that is in the shadow already, and adopting looks there.
- A host that was told to ring (EventIdx is the tail) still rings, and adopting takes that back.

What limits hold back isn't under way and stays with its queue (throttle.pxd): the new thread starts it.

A queue waits for its own commands only while it moves. When those take longer than the control plane
wants to wait, the move is abandoned and the old thread goes on where it stopped.
"""

from libc.stdint cimport uint32_t

from shadowbell.dataplane.includes.cpu cimport fence, load32, store_ptr
from shadowbell.dataplane.interrupts cimport flush_interrupts
from shadowbell.dataplane.kick cimport activate, retire
from shadowbell.dataplane.layout cimport CompletionQueue, SubmissionQueue, ThreadState
from shadowbell.dataplane.ring cimport await_ioeventfd, cancel_ioeventfd
from shadowbell.dataplane.throttle cimport held_of, hold_again, let_go


cdef int release(ThreadState *thread, CompletionQueue *cq) noexcept nogil:
    """Called round after round until it doesn't wait any more."""
    cdef SubmissionQueue *sq
    cdef bint drained = True
    cdef uint32_t i
    for i in range(thread.queue_count):
        sq = thread.queues[i]
        if sq.cq != cq:
            continue
        if sq.thread == thread:
            store_ptr(&sq.thread, NULL)
            stop_polling(thread, sq)
            let_go(thread, sq.engine, sq)
        if sq.inflight != held_of(sq):
            drained = False
        if sq.ioeventfd_awaited:
            cancel_ioeventfd(thread, sq)
            drained = False
    if drained:
        forget(thread, cq)
        return HANDOVER_DONE
    if load32(&thread.mailbox.abandoned):
        keep(thread, cq)
        return HANDOVER_KEPT
    return HANDOVER_WAITS


cdef void stop_polling(ThreadState *thread, SubmissionQueue *sq) noexcept nogil:
    cdef uint32_t i = 0
    while i < thread.active_count:
        if thread.active[i] == sq:
            retire(thread, i)
        else:
            i += 1


cdef void forget(ThreadState *thread, CompletionQueue *cq) noexcept nogil:
    cdef uint32_t i = 0
    flush_interrupts(thread, cq.engine, cq)
    while i < thread.queue_count:
        if thread.queues[i].cq == cq:
            thread.io_queue_count -= 1
            thread.queue_count -= 1
            thread.queues[i] = thread.queues[thread.queue_count]
        else:
            i += 1


cdef void keep(ThreadState *thread, CompletionQueue *cq) noexcept nogil:
    """Go on as if nothing had been asked; what was rung meanwhile is looked at."""
    cdef SubmissionQueue *sq
    cdef uint32_t i
    for i in range(thread.queue_count):
        sq = thread.queues[i]
        if sq.cq == cq:
            store_ptr(&sq.thread, thread)
            fence()
            activate(thread, sq)
            hold_again(thread, sq)
            if sq.ioeventfd >= 0 and not sq.ioeventfd_awaited:
                await_ioeventfd(thread, sq)  # else the cancelled read's end does it


cdef void adopt(ThreadState *thread, CompletionQueue *cq) noexcept nogil:
    cdef SubmissionQueue *sq
    cdef uint32_t i
    cq.thread = thread
    for i in range(1, cq.engine.max_queues + 1):
        sq = cq.engine.sqs[i]
        if sq != NULL and sq.cq == cq:
            sq.rung = 0
            store_ptr(&sq.thread, thread)
            fence()
            take_up(thread, sq)


cdef void take_up(ThreadState *thread, SubmissionQueue *sq) noexcept nogil:
    """Serve a queue from now on: look at its doorbell first, whatever was said before."""
    sq.active = False
    thread.queues[thread.queue_count] = sq
    thread.queue_count += 1
    thread.io_queue_count += sq.qid != 0
    activate(thread, sq)
    hold_again(thread, sq)
    if sq.ioeventfd >= 0:
        await_ioeventfd(thread, sq)
