"""An IOThread's loop, and the one place where it waits.

A round: take an operation of the control plane's, reap the rings, serve the polled queues, submit
once, raise each completion queue's interrupt at most once (interrupts.pxd). When nothing has moved
for a while (pacing.pxd), every queue is armed (doorbells.pxd) and the thread sleeps in its ring,
where storage completions, the clients' sockets and kicks all arrive.
"""

from libc.errno cimport ETIME
from libc.stdint cimport uint32_t, uint64_t

from shadowbell.block.backend cimport BlockContext
from shadowbell.block.gathering cimport (
    Gathering,
    longest_wait,
    look,
    must_look,
    share_to_await,
)
from shadowbell.block.sources cimport await_notes, noted, run_timers, take_notes
from shadowbell.dataplane.arrivals cimport reap
from shadowbell.dataplane.commands cimport retry_waiting, start_held
from shadowbell.dataplane.dma cimport bus_error_count
from shadowbell.dataplane.doorbells cimport arm
from shadowbell.dataplane.events cimport push_event, signal_fd
from shadowbell.dataplane.includes.cpu cimport (
    clock_ns,
    exchange32,
    fence,
    load32,
    load64,
    relax,
    store32,
    store64,
    ticks,
)
from shadowbell.dataplane.includes.uring cimport (
    __kernel_timespec,
    io_uring_cqe,
    io_uring_get_events,
    io_uring_sq_ready,
    io_uring_submit,
    io_uring_submit_and_wait,
    io_uring_submit_and_wait_timeout,
    uring_pending,
    uring_poll,
    uring_ready,
)
from shadowbell.dataplane.interrupts cimport next_interrupt_ns, raise_interrupts
from shadowbell.dataplane.kick cimport activate, retire
from shadowbell.dataplane.layout cimport (
    EVENT_BUS_ERROR,
    NEVER,
    OP_STOP,
    SubmissionQueue,
    ThreadState,
)
from shadowbell.dataplane.operations cimport operate
from shadowbell.dataplane.pacing cimport (
    HELD_NAP_NS,
    REST_NAP,
    REST_POLL,
    UNKNOWN,
    how_to_rest,
    idle_queue_span,
    in_ticks,
    napped,
    note_waits,
    returned,
    slept_for_others,
    waits_are_old,
    was_away,
    worked,
)
from shadowbell.dataplane.queues cimport completion_room, serve, ticks_to_ns
from shadowbell.dataplane.ring cimport await_kick, await_wide
from shadowbell.dataplane.schedstat cimport read_schedstat
from shadowbell.dataplane.throttle cimport held_ticks

cdef enum:
    HELD_LONGEST_NS = 1000000000


cdef void run(ThreadState *thread) noexcept nogil:
    cdef uint64_t now, started, nap = 0
    cdef uint32_t share
    cdef int resting
    cdef bint busy = False
    cdef bint waits = False        # an operation of the control plane's, for commands to end
    await_kick(thread)
    thread.now = thread.pace.last_work = started = ticks()
    while True:
        now = ticks()
        if busy:
            count_busy(thread, now - started)
            busy = False
        thread.now = started = now
        waits = False
        if load32(&thread.mailbox.posted) != thread.mailbox.done:
            if thread.mailbox.kind == OP_STOP:
                thread.mailbox.done = thread.mailbox.posted
                signal_fd(thread.done_fd)
                return
            busy = operate(thread)
            waits = not busy
        if load32(&thread.kicked):
            take_kicks(thread)
        if reap_all(thread):
            busy = True
        if thread.block.notes != NULL:
            take_notes(&thread.block)
            busy = True
        if thread.block.next_due and thread.block.next_due <= clock_ns():
            run_timers(&thread.block, clock_ns())
        if thread.waiting != NULL and retry_waiting(thread):
            busy = True
        if thread.held != NULL and start_held(thread):
            busy = True
        if serve_active(thread, idle_queue_span(&thread.pace)):
            busy = True
        submit_all(thread)
        if thread.interrupts != NULL:
            raise_interrupts(thread)
        if thread.bus_errors_seen != load32(bus_error_count):
            tell_bus_error(thread)
        if was_away(&thread.pace, started):
            judge_absence(thread, started)
        if busy:
            worked(&thread.pace, started, thread.now)
            continue
        share = notes_to_await(thread)
        if share:
            slept_for_others(&thread.pace, thread.now)
            rest(thread, 0, share, waits)
            continue
        resting = how_to_rest(&thread.pace, thread.now, thread.io_queue_count != 0,
                              thread.mapped_count != 0, thread.held != NULL, &nap)
        if resting == REST_POLL or thread.block.polling:  # the polled ring wakes nobody
            relax()
        else:
            rest(thread, nap if resting == REST_NAP and thread.active_count else 0, 1, waits)


cdef inline uint32_t notes_to_await(ThreadState *thread) noexcept nogil:
    """Of other threads', before anything else is done; 0: rest as the pace says."""
    cdef Gathering *gathering = &thread.block.gathering
    if (gathering.awaited == 0 or thread.statistics < 0 or thread.pace.always
            or thread.block.polling or thread.mapped_count or thread.held != NULL):
        return 0
    if must_look(gathering, clock_ns()):
        look_at_statistics(thread)
    return share_to_await(gathering)


cdef void look_at_statistics(ThreadState *thread) noexcept nogil:
    cdef Gathering *gathering = &thread.block.gathering
    cdef uint64_t ran = gathering.ran, waited = gathering.waited  # no longer, where the kernel is silent
    read_schedstat(thread.statistics, &ran, &waited)
    look(gathering, clock_ns(), ran, waited, thread.block.taken)


cdef void judge_absence(ThreadState *thread, uint64_t now) noexcept nogil:
    cdef uint64_t ran, waited
    if not read_schedstat(thread.statistics, &ran, &waited):
        waited = UNKNOWN
    returned(&thread.pace, now, waited)


cdef inline void look_at_waits(ThreadState *thread) noexcept nogil:
    cdef uint64_t ran, waited
    if (thread.statistics >= 0 and waits_are_old(&thread.pace, thread.now)
            and read_schedstat(thread.statistics, &ran, &waited)):
        note_waits(&thread.pace, thread.now, waited)


cdef void count_busy(ThreadState *thread, uint64_t spent) noexcept nogil:
    """A round found work; all of it counts, the submitting and the interrupts too."""
    thread.busy += spent
    if thread.busy >= load64(&thread.busy_alarm):
        store64(&thread.busy_alarm, NEVER)
        signal_fd(thread.alarm_fd)


cdef inline bint reap_all(ThreadState *thread) noexcept nogil:
    """Take what the rings have; the second and third are rarely there."""
    cdef BlockContext *block = &thread.block
    cdef unsigned count
    cdef bint busy = False
    if uring_pending(&block.ring):
        io_uring_get_events(&block.ring)
    if uring_ready(&block.ring):
        reap(thread, &block.ring)
        busy = True
    if block.polling:
        uring_poll(&block.polled)
        count = reap(thread, &block.polled)
        block.polling -= count
        busy = busy or count != 0
    if block.commanding:
        count = reap(thread, &block.wide)
        block.commanding -= count
        busy = busy or count != 0
    return busy


cdef inline void submit_all(ThreadState *thread) noexcept nogil:
    cdef BlockContext *block = &thread.block
    if io_uring_sq_ready(&block.ring):
        io_uring_submit(&block.ring)
    if block.polling and io_uring_sq_ready(&block.polled):
        io_uring_submit(&block.polled)
    if block.commanding and io_uring_sq_ready(&block.wide):
        io_uring_submit(&block.wide)


cdef bint serve_active(ThreadState *thread, uint64_t idle_queue) noexcept nogil:
    cdef SubmissionQueue *sq
    cdef bint busy = False
    cdef uint32_t i = 0
    while i < thread.active_count:
        sq = thread.active[i]
        if serve(thread, sq):
            sq.idle_since = thread.now
            busy = True
        elif thread.now - sq.idle_since > idle_queue and not sq.engine.mapped and settle(sq):
            retire(thread, i)
            continue
        i += 1
    return busy


cdef bint settle(SubmissionQueue *sq) noexcept nogil:
    """See to it that the next thing to do for a queue wakes us; False: there is something now."""
    if sq.dead or not sq.reachable:
        return True  # nothing can be done before the control plane changes it
    if sq.cq.stalled and completion_room(sq.cq) == 0:
        return True  # its completion queue's head is armed
    return arm(sq)


cdef void take_kicks(ThreadState *thread) noexcept nogil:
    cdef uint32_t i
    exchange32(&thread.kicked, 0)
    for i in range(thread.queue_count):
        if thread.queues[i].engine == thread.pausing or thread.queues[i].thread != thread:
            continue  # who takes it up looks at it
        if load32(&thread.queues[i].rung) and exchange32(&thread.queues[i].rung, 0):
            activate(thread, thread.queues[i])


cdef void rest(ThreadState *thread, uint64_t nap, uint32_t share, bint waits) noexcept nogil:
    """Nap for so many ticks, or arm every polled queue and sleep; back at once when one has work.

    share: how many notes of other threads' are work.
    """
    cdef uint64_t ns
    cdef uint64_t due
    cdef uint32_t i = 0
    cdef io_uring_cqe *cqe = NULL
    cdef __kernel_timespec timeout
    if thread.block.commanding and not thread.wide_awaited:
        await_wide(thread)
    if waits:
        share = 1
    look_at_waits(thread)
    ns = nap * thread.pace.ns_factor >> 20 if nap else longest_wait(&thread.block.gathering, share)
    await_notes(&thread.block, share)
    store32(&thread.sleeping, 1)
    fence()
    while nap == 0 and i < thread.active_count:
        if thread.free_count == 0:
            i += 1  # the end of a command will wake us
        elif settle(thread.active[i]):
            retire(thread, i)
        else:
            store32(&thread.sleeping, 0)
            return
    # What an operation waits for wakes us: the ends of commands, and its being called off. Tried once
    # more, since a timer may have ended a command after this round's try.
    if (load32(&thread.kicked) or noted(&thread.block)
            or (operate(thread) if waits else load32(&thread.mailbox.posted) != thread.mailbox.done)):
        store32(&thread.sleeping, 0)
        return
    if thread.interrupts != NULL:
        due = next_interrupt_ns(thread)
        ns = min(ns, due) if ns else due
    if thread.block.next_due:
        ns = until_timer(thread, ns)
    if thread.held != NULL:
        ns = until_held(thread, ns)
    if ns:
        timeout.tv_sec = ns // 1000000000
        timeout.tv_nsec = ns % 1000000000
        if (io_uring_submit_and_wait_timeout(&thread.block.ring, &cqe, 1, &timeout, NULL) == -ETIME
                and nap):
            napped(&thread.pace, ns * thread.pace.tick_factor >> 20, ticks() - thread.now)
    else:
        io_uring_submit_and_wait(&thread.block.ring, 1)
    store32(&thread.sleeping, 0)


cdef uint64_t until_timer(ThreadState *thread, uint64_t nap) noexcept nogil:
    """Shorten a nap, or a sleep (0), to end with the first timer of a back end's."""
    cdef uint64_t now = clock_ns()
    cdef uint64_t left = thread.block.next_due - now if thread.block.next_due > now else 1
    return min(nap, left) if nap else left


cdef uint64_t until_held(ThreadState *thread, uint64_t nap) noexcept nogil:
    """Shorten a nap, or a sleep (0), to end when the first held command may start."""
    cdef uint64_t left = min(held_ticks(thread), in_ticks(&thread.pace, HELD_LONGEST_NS))
    left = max(ticks_to_ns(thread, left), <uint64_t> HELD_NAP_NS)
    return min(nap, left) if nap else left


cdef void tell_bus_error(ThreadState *thread) noexcept nogil:
    cdef uint32_t i
    thread.bus_errors_seen = load32(bus_error_count)
    for i in range(thread.queue_count):
        if i and thread.queues[i].engine == thread.queues[i - 1].engine:
            continue
        push_event(thread.queues[i].engine, EVENT_BUS_ERROR, thread.queues[i].qid, 0, 0, 0, 0)
