# Waking an IOThread, and the queues it polls: putting one among them, taking one out.

from libc.stdint cimport uint32_t

from shadowbell.dataplane.doorbells cimport wake
from shadowbell.dataplane.events cimport signal_fd
from shadowbell.dataplane.includes.cpu cimport fence, load32, load_ptr, store32
from shadowbell.dataplane.layout cimport SubmissionQueue, ThreadState


cdef inline void kick(ThreadState *thread) noexcept nogil:
    """What the thread is to see must be stored before; it says that it sleeps before it looks."""
    fence()
    if load32(&thread.sleeping):
        signal_fd(thread.kick_fd)


cdef inline void activate(ThreadState *thread, SubmissionQueue *sq) noexcept nogil:
    """On the queue's own thread: poll it from now on."""
    sq.idle_since = thread.now
    if not sq.active:
        sq.active = True
        thread.active[thread.active_count] = sq
        thread.active_count += 1
        thread.mapped_count += sq.engine.mapped
        wake(sq)


cdef inline void retire(ThreadState *thread, uint32_t i) noexcept nogil:
    """Take an armed queue from the polled ones."""
    cdef SubmissionQueue *sq = thread.active[i]
    sq.active = False
    thread.mapped_count -= sq.engine.mapped
    thread.active_count -= 1
    thread.active[i] = thread.active[thread.active_count]


cdef inline void ring_queue(ThreadState *current, SubmissionQueue *sq) noexcept nogil:
    """A queue has work: its doorbell's value is stored. current: our IOThread, or NULL.

    While a queue moves it has no thread, and the one that adopts it looks at its doorbell then: who
    finds none here has stored the value before that look (handover.pyx).
    """
    cdef ThreadState *thread
    if current != NULL and sq.thread == current:  # nobody else makes or unmakes it so
        activate(current, sq)
        return
    fence()
    thread = <ThreadState *> load_ptr(&sq.thread)
    if thread != NULL:
        store32(&sq.rung, 1)
        store32(&thread.kicked, 1)
        kick(thread)
