# What the data plane and a block back end say to each other. Blocks, bytes and iovecs only:
# nothing in this folder knows NVMe.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from shadowbell.block.gathering cimport Gathering
from shadowbell.dataplane.includes.uring cimport io_uring, iovec

cdef enum BlockOp:
    BLOCK_READ
    BLOCK_WRITE
    BLOCK_FLUSH
    BLOCK_ZERO
    BLOCK_DISCARD

cdef enum BlockFlag:
    BLOCK_FUA = 1    # stable before it completes
    BLOCK_UNMAP = 2  # a BLOCK_ZERO may free the space

cdef enum Submitted:
    BLOCK_PENDING = 0  # advance() will be called with the ring's result, or complete() will be
    BLOCK_DONE = 1     # request.result is set
    BLOCK_BUSY = 2     # no room in the ring or among the bounce buffers: try again later

cdef enum:
    BOUNCE_SIZE = 1048576
    BOUNCE_COUNT = 16
    MAX_CONTEXTS = 64  # IOThreads of a process; config.py has the same limit
    MAX_FILES = 1024   # registered in a ring
    MAX_RANGES = 256   # of memory that is registered in a ring

ctypedef int (*submit_function)(BlockContext *, BlockRequest *) noexcept nogil
ctypedef int (*advance_function)(BlockContext *, BlockRequest *, int) noexcept nogil
ctypedef void (*note_function)(BlockContext *, Note *) noexcept nogil
ctypedef void (*source_function)(BlockContext *, Source *, uint32_t events) noexcept nogil
ctypedef void (*complete_function)(BlockContext *, BlockRequest *, int result) noexcept nogil
ctypedef void (*wake_function)(BlockContext *) noexcept nogil
ctypedef int (*enter_function)(BlockContext *, BlockState *) noexcept nogil
ctypedef bint (*leave_function)(BlockContext *, BlockState *) noexcept nogil
ctypedef void (*urge_function)(BlockContext *, BlockState *, bint urgent) noexcept nogil

# What any thread may say to an IOThread: sources.pxd.
cdef struct Note:
    Note *next
    note_function take
    void *owner            # its poster's own

cdef struct BlockRequest:
    Note note              # first: brings the result from another thread
    BlockState *backend
    iovec *iov             # the host's memory, niov pieces, length bytes in all
    uint64_t offset        # bytes
    uint64_t length        # bytes
    uint64_t done          # bytes moved by earlier parts of this request
    uint64_t generation    # a flush's: flushing.pxd
    void *bounce           # a buffer of the context's, where alignment forces one
    iovec single           # the iovec of a bounced or zero-filled part
    uint32_t niov
    int result             # 0 or -errno
    uint8_t op
    uint8_t flags
    uint8_t stage          # the back end's own, as is all that follows
    BlockContext *context  # where it was submitted
    BlockRequest *next
    BlockRequest *previous
    uint64_t start         # ns of CLOCK_MONOTONIC
    void *recorded         # record.pyx; NULL unless the request is in its log

# A descriptor or a timer of a back end's in an IOThread: sources.pxd. A new one has fd -1.
cdef struct Source:
    source_function ready
    void *owner            # the back end's own
    int fd                 # what is to be polled, -1: nothing
    uint32_t events        # and for what
    bint polled            # the ring polls it, or what was asked for before
    bint stale
    uint64_t due           # ns of CLOCK_MONOTONIC, 0: no timer
    Source *next_timed

# Memory that is registered in rings: fixed.pxd.
cdef struct FixedRange:
    uint64_t start         # host address
    uint64_t length
    uint32_t slot          # of its first chunk in the rings' tables
    uint32_t chunks
    int source             # the ring that pins it
    bint vectored          # the kernel takes transfers of several pieces
    int error              # of entering it into a thread's rings: 0 or -errno

cdef struct FixedTable:
    uint32_t count
    uint32_t hint          # the last hit
    uint64_t transfers     # that went through registered memory
    FixedRange *ranges[MAX_RANGES]  # by address

# Per IOThread: the rings that its back ends submit to, bounce buffers, what its back ends wait for.
cdef struct BlockContext:
    io_uring ring          # the one to sleep in
    io_uring polled        # --iopoll: completions are fetched from the device, nothing wakes us
    io_uring wide          # NVMe commands: entries twice as large, opened when first needed
    bint has_polled
    bint has_wide
    uint32_t polling       # requests in the polled ring
    uint32_t commanding    # requests in the wide ring
    uint8_t files[MAX_FILES]   # which slots hold a registered file
    FixedTable fixed
    uint8_t *bounce_area
    void *bounce_free[BOUNCE_COUNT]
    uint32_t bounce_left
    uint32_t index         # of the thread: a back end's state there is its locals[index]
    Note *notes            # the last one posted
    uint32_t posted        # how many were posted since the thread began,
    uint32_t taken         # how many of them were taken,
    uint32_t wake_at       # and which one, counted by posted, is to wake the thread: sources.pyx
    Gathering gathering
    uint64_t next_due      # ns: the first timer; 0: none
    Source *timed
    complete_function complete  # ends a request that was pending
    wake_function wake          # from any thread: see to it that notes are looked at

cdef struct BlockState:
    submit_function submit
    advance_function advance
    uint64_t size
    uint8_t *memory        # memory: the whole disk
    int fd                 # file: the image
    int file_slot          # file: its place in the rings' tables of registered files, or -1
    bint polled            # file: reads and writes go to the polled ring
    uint32_t memory_align  # file: what O_DIRECT asks of an address; 1 without
    uint32_t length_align  # and of the length of each piece
    bint can_punch         # file: cleared when the kernel says it can't
    bint can_zero
    bint can_discard       # file: its device's discard, until that is refused
    uint32_t nsid          # NVMe device: of its namespace
    uint32_t lba_shift     # NVMe device: of its blocks
    uint64_t max_transfer  # NVMe device: bytes of a command
    uint64_t generation    # which writes are stable: flushing.pxd
    uint64_t written
    uint64_t flushed
    # A back end with state of its own in each IOThread; NULL for the others. All run on that thread.
    enter_function enter   # before the first request; 0 or -errno
    leave_function leave   # after the last; called again each round until it returns True
    urge_function urge     # an engine wants its requests to end, soon and if need be by an error
    void *own              # what the threads share
    void *locals[MAX_CONTEXTS]

cdef inline void *bounce_take(BlockContext *context) noexcept nogil:
    if context.bounce_left == 0:
        return NULL
    context.bounce_left -= 1
    return context.bounce_free[context.bounce_left]

cdef inline void bounce_give(BlockContext *context, void *buffer) noexcept nogil:
    context.bounce_free[context.bounce_left] = buffer
    context.bounce_left += 1

cdef class Backend:
    cdef BlockState state
    cdef bint closed
    cdef int attached      # namespaces that use it
    cdef readonly str kind
    cdef readonly bint read_only
    cdef readonly bint supports_discard
    cdef readonly bint discard_zeroes  # what was discarded reads as zeros
