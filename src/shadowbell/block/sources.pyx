"""Descriptors, timers and other threads' words for back ends: see sources.pxd."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from shadowbell.block.backend cimport BlockContext, BlockRequest, Note, Source
from shadowbell.block.sources cimport TAG_IGNORE, TAG_SOURCE, ring_entry
from shadowbell.dataplane.includes.cpu cimport (
    count32,
    exchange_ptr,
    fence,
    load32,
    store32,
    swap_if_ptr,
)
from shadowbell.dataplane.includes.uring cimport (
    io_uring_prep_cancel64,
    io_uring_prep_poll_add,
    io_uring_sqe,
    io_uring_sqe_set_data64,
)


# --- descriptors ------------------------------------------------------------------------------------

cdef void watch(BlockContext *context, Source *source, int fd, uint32_t events) noexcept nogil:
    """Call ready() when ``fd`` has one of ``events`` (poll(2)), instead of what was watched before."""
    if source.fd == fd and source.events == events:
        return
    source.fd = fd
    source.events = events
    if not source.polled:
        arm(context, source)
    elif not source.stale:
        # The ring polls for something else: its completion, cancelled or not, starts the new poll.
        source.stale = True
        cancel(context, source)


cdef void unwatch(BlockContext *context, Source *source) noexcept nogil:
    """Poll no more. The ring knows the source until ``source.polled`` is false."""
    watch(context, source, -1, 0)


cdef void polled(BlockContext *context, Source *source, int res) noexcept nogil:
    """The ring's poll has ended."""
    cdef bint stale = source.stale
    source.polled = False
    source.stale = False
    if not stale:
        source.ready(context, source, <uint32_t> max(res, 0))
    if not source.polled:
        arm(context, source)


cdef void arm(BlockContext *context, Source *source) noexcept nogil:
    cdef io_uring_sqe *sqe
    if source.fd < 0:
        return
    sqe = ring_entry(context)
    io_uring_prep_poll_add(sqe, source.fd, source.events)
    io_uring_sqe_set_data64(sqe, <uint64_t> source | TAG_SOURCE)
    source.polled = True


cdef void cancel(BlockContext *context, Source *source) noexcept nogil:
    cdef io_uring_sqe *sqe = ring_entry(context)
    io_uring_prep_cancel64(sqe, <uint64_t> source | TAG_SOURCE, 0)
    io_uring_sqe_set_data64(sqe, TAG_IGNORE)


# --- timers -----------------------------------------------------------------------------------------

cdef void set_timer(BlockContext *context, Source *source, uint64_t due) noexcept nogil:
    """Call ready() once at ``due``, in ns of CLOCK_MONOTONIC; 0: never."""
    cdef Source **link = &context.timed
    while link[0] != NULL and link[0] != source:
        link = &link[0].next_timed
    if due == 0 and link[0] != NULL:
        link[0] = source.next_timed
    elif due and link[0] == NULL:
        source.next_timed = context.timed
        context.timed = source
    source.due = due
    find_next_due(context)


cdef void run_timers(BlockContext *context, uint64_t now) noexcept nogil:
    cdef Source *source = context.timed
    cdef Source *following
    while source != NULL:
        following = source.next_timed
        if source.due <= now:
            set_timer(context, source, 0)
            source.ready(context, source, 0)
            following = context.timed  # ready() may have changed the list
        source = following


cdef void find_next_due(BlockContext *context) noexcept nogil:
    cdef Source *source = context.timed
    cdef uint64_t due = 0
    while source != NULL:
        if due == 0 or source.due < due:
            due = source.due
        source = source.next_timed
    context.next_due = due


# --- words from other threads -----------------------------------------------------------------------
#
# Before the thread sleeps it says which note is to wake it, then that it sleeps, then looks whether
# that one is there already. A poster adds its note, counts it, then looks whether it is that one, and
# whether the thread sleeps. With a fence between each one's store and look, one of them sees the
# other's; and of many posters one pays for the waking. tests/model/notes.py explores it.

cdef void post(BlockContext *context, Note *note) noexcept nogil:
    """From any thread: have ``note.take`` called on the context's thread, in the order of posting.

    The note must live, and not be posted again, until then.
    """
    cdef Note *first
    while True:
        first = context.notes
        note.next = first
        if swap_if_ptr(&context.notes, first, note):
            break
    cdef uint32_t number = count32(&context.posted)
    fence()
    if number == load32(&context.wake_at):
        context.wake(context)


cdef void await_notes(BlockContext *context, uint32_t count) noexcept nogil:
    """The thread is about to sleep, until so many more notes than it has taken are posted."""
    store32(&context.wake_at, context.taken + count)


cdef bint noted(BlockContext *context) noexcept nogil:
    """Have as many been posted? To be asked behind a fence."""
    return <int32_t> (load32(&context.posted) - context.wake_at) >= 0


cdef void post_result(BlockContext *context, BlockRequest *request, int result) noexcept nogil:
    """From any thread: end a request that was submitted on this context; result is 0 or -errno."""
    request.result = result
    request.note.take = take_result
    post(context, &request.note)


cdef void take_result(BlockContext *context, Note *note) noexcept nogil:
    cdef BlockRequest *request = <BlockRequest *> note
    context.complete(context, request, request.result)


cdef void take_notes(BlockContext *context) noexcept nogil:
    """Take what has been posted, oldest first."""
    cdef Note *note = <Note *> exchange_ptr(&context.notes, NULL)
    cdef Note *oldest = NULL
    cdef Note *following
    while note != NULL:
        context.taken += 1
        following = note.next
        note.next = oldest
        oldest = note
        note = following
    while oldest != NULL:
        following = oldest.next  # taking it may free it or post it again
        oldest.take(context, oldest)
        oldest = following
