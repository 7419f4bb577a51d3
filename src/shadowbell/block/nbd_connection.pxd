# One NBD connection, as it lives in an IOThread; what they share, and who may touch what.
#
# A connection belongs to its IOThread. Where the server allows several (multi-conn: a Flush on one
# covers them all), each IOThread has its own; else the first to come has the only one, `home`, and
# the others post their requests to it.
#
# Making a connection can take long and block (names are looked up, certificates checked), so it is
# done by a thread of the control plane's, the connector: a connection that lost its handle sets
# `wanted` and signals `wanted_fd`; the connector puts a new one into `fresh` and posts `handover`.
# The memory of all connections lives as long as the back end, so a late word finds it.

from libc.stdint cimport uint32_t, uint64_t

from shadowbell.block.backend cimport BlockContext, BlockRequest, Note, Source
from shadowbell.block.includes.libnbd cimport nbd_handle

cdef enum Stage:
    MOVING                     # reading or writing the data
    TRIMMING
    ZEROING                    # the server writes zeros
    WRITING_ZEROS              # we do, because it can't
    SYNCING                    # a flush, of its own or behind a FUA that the server doesn't know

cdef struct Queue:
    BlockRequest *first
    BlockRequest *last

cdef struct Connection:
    BlockContext *context      # NULL: no IOThread has entered
    Disk *disk
    nbd_handle *handle         # NULL: not connected
    bint exact                 # replies are as long as we know: simple ones, and no TLS
    Source socket
    Source clock               # the next command to fail for lateness
    Queue sent                 # commands that libnbd has
    Queue waiting              # commands that wait for a connection
    Queue ended                # commands that libnbd has done with, to be looked at by settle()
    bint settling
    bint urged                 # an engine waits for its commands to end
    uint64_t urged_at          # ns
    Note handover              # posted by the connector
    uint32_t handed            # handover is posted
    nbd_handle *fresh
    Note sweep                 # posted by ourselves: settle() later
    bint swept                 # sweep is posted
    uint32_t wanted            # for the connector

cdef struct Disk:
    Connection *connections    # MAX_CONTEXTS
    Connection *home
    bint multi
    int wanted_fd
    uint64_t timeout           # ns; 0: commands wait for ever
    uint32_t largest           # bytes of a read or a write
    bint can_flush
    bint can_fua
    bint can_trim
    bint can_zero
    nbd_handle *spares[64]     # connected, in no IOThread
    uint32_t spare_count
    BlockRequest control       # the control plane's flush
    int control_fd             # signalled at its end


cdef inline void push(Queue *queue, BlockRequest *request) noexcept nogil:
    request.next = NULL
    request.previous = queue.last
    if queue.last != NULL:
        queue.last.next = request
    else:
        queue.first = request
    queue.last = request


cdef inline void remove(Queue *queue, BlockRequest *request) noexcept nogil:
    if request.previous != NULL:
        request.previous.next = request.next
    else:
        queue.first = request.next
    if request.next != NULL:
        request.next.previous = request.previous
    else:
        queue.last = request.previous


cdef inline BlockRequest *pop(Queue *queue) noexcept nogil:
    cdef BlockRequest *request = queue.first
    if request != NULL:
        remove(queue, request)
    return request


cdef inline Queue take_all(Queue *queue) noexcept nogil:
    cdef Queue taken = queue[0]
    queue.first = queue.last = NULL
    return taken


cdef void send(Connection *c, BlockRequest *request) noexcept nogil
cdef void settle_later(Connection *c) noexcept nogil
cdef void take_sweep(BlockContext *context, Note *note) noexcept nogil
cdef void socket_ready(BlockContext *context, Source *source, uint32_t events) noexcept nogil
cdef void settle(Connection *c) noexcept nogil
cdef void watch_socket(Connection *c) noexcept nogil
cdef void finish(Connection *c, BlockRequest *request, int result) noexcept nogil
cdef void lose(Connection *c) noexcept nogil
cdef void fail_waiting(Connection *c) noexcept nogil
