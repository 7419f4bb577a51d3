# What the data plane and a block back end say to each other. Blocks, bytes and iovecs only:
# nothing in this folder knows NVMe.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

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
    BLOCK_PENDING = 0  # advance() will be called with the ring's result
    BLOCK_DONE = 1     # request.result is set
    BLOCK_BUSY = 2     # no room in the ring or among the bounce buffers: try again later

cdef enum:
    BOUNCE_SIZE = 1048576
    BOUNCE_COUNT = 16

cdef struct BlockRequest:
    BlockState *backend
    iovec *iov             # the host's memory, niov pieces, length bytes in all
    uint64_t offset        # bytes
    uint64_t length        # bytes
    uint64_t done          # bytes moved by earlier parts of this request
    void *bounce           # a buffer of the context's, where alignment forces one
    iovec single           # the iovec of a bounced or zero-filled part
    uint32_t niov
    int result             # 0 or -errno
    uint8_t op
    uint8_t flags
    uint8_t stage          # the back end's own

# Per IOThread: the ring that its back ends submit to, and its bounce buffers.
cdef struct BlockContext:
    io_uring ring
    uint8_t *bounce_area
    void *bounce_free[BOUNCE_COUNT]
    uint32_t bounce_left

ctypedef int (*submit_function)(BlockContext *, BlockRequest *) noexcept nogil
ctypedef int (*advance_function)(BlockContext *, BlockRequest *, int) noexcept nogil

cdef struct BlockState:
    submit_function submit
    advance_function advance
    uint64_t size
    uint8_t *memory        # memory: the whole disk
    int fd                 # file: the image
    uint32_t memory_align  # file: what O_DIRECT asks of an address; 1 without
    uint32_t length_align  # and of the length of each piece
    bint can_punch         # file: cleared when the kernel says it can't
    bint can_zero

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
    cdef readonly str kind
    cdef readonly bint read_only
    cdef readonly bint supports_discard
