"""A command's way through librbd.

Data goes straight between the guest's memory and librbd. Its completions arrive in threads of
librbd's and are posted from there to the request's IOThread (sources.pxd), where all else is done.

FUA is a write and then a flush. What is discarded reads as zeros whatever its alignment, so it is
zeroed thinly where it isn't whole granules, which is all that librbd's discard touches.
"""

from libc.errno cimport EAGAIN, EDQUOT, EIO, ENOSPC, EROFS, ESHUTDOWN
from libc.stdint cimport uint64_t

from shadowbell.block.backend cimport (
    BLOCK_DISCARD,
    BLOCK_DONE,
    BLOCK_FLUSH,
    BLOCK_FUA,
    BLOCK_PENDING,
    BLOCK_READ,
    BLOCK_UNMAP,
    BLOCK_WRITE,
    BLOCK_ZERO,
    BlockContext,
    BlockRequest,
    Note,
)
from shadowbell.block.gathering cimport await_end, has_ended
from shadowbell.block.includes.librbd cimport (
    RBD_WRITE_ZEROES_FLAG_THICK_PROVISION,
    rbd_aio_create_completion,
    rbd_aio_discard,
    rbd_aio_flush,
    rbd_aio_get_return_value,
    rbd_aio_readv,
    rbd_aio_release,
    rbd_aio_write_zeroes,
    rbd_aio_writev,
    rbd_completion_t,
)
from shadowbell.block.sources cimport post
from shadowbell.dataplane.includes.cpu cimport clock_ns, load32, store32


cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd_write(int fd, uint64_t value)

cdef enum Stage:
    MOVING
    SYNCING                    # the flush behind a FUA

cdef enum:
    GRANULE = 65536            # librbd's discard leaves alone what isn't whole ones of these


cdef int rbd_submit(BlockContext *context, BlockRequest *request) noexcept nogil:
    request.context = context
    request.stage = MOVING
    return start(<Image *> request.backend.own, request)


cdef int rbd_advance(BlockContext *context, BlockRequest *request, int res) noexcept nogil:
    """Nothing of ours goes through the ring."""
    request.result = -EIO
    return BLOCK_DONE


cdef int start(Image *image, BlockRequest *request) noexcept nogil:
    cdef rbd_completion_t completion
    cdef int error
    if load32(&image.away):
        request.result = -EAGAIN
        return BLOCK_DONE
    request.start = clock_ns()
    error = rbd_aio_create_completion(request, landed, &completion)
    if error < 0:
        request.result = error
        return BLOCK_DONE
    if request.op == BLOCK_FLUSH or request.stage == SYNCING:
        error = rbd_aio_flush(image.handle, completion)
    elif request.op == BLOCK_READ:
        error = rbd_aio_readv(
            image.handle, request.iov, request.niov, request.offset, completion)
    elif request.op == BLOCK_WRITE:
        error = rbd_aio_writev(
            image.handle, request.iov, request.niov, request.offset, completion)
    elif request.op == BLOCK_DISCARD and (request.offset | request.length) & (GRANULE - 1) == 0:
        error = rbd_aio_discard(image.handle, request.offset, request.length, completion)
    else:
        error = rbd_aio_write_zeroes(
            image.handle, request.offset, request.length, completion,
            0 if request.op == BLOCK_DISCARD or request.flags & BLOCK_UNMAP
            else RBD_WRITE_ZEROES_FLAG_THICK_PROVISION, 0)
    if error < 0:
        rbd_aio_release(completion)
        request.result = meaning(image, error)
        return BLOCK_DONE
    await_end(&request.context.gathering)
    return BLOCK_PENDING


cdef void landed(rbd_completion_t completion, void *arg) noexcept nogil:
    """In a thread of librbd's."""
    cdef BlockRequest *request = <BlockRequest *> arg
    cdef ssize_t result = rbd_aio_get_return_value(completion)
    rbd_aio_release(completion)
    if request.op == BLOCK_READ and result >= 0 and <uint64_t> result < request.length:
        result = -EIO  # the image ends before the namespace does: it was made smaller
    request.result = <int> min(result, <ssize_t> 0)
    request.note.take = go_on
    post(request.context, &request.note)


cdef void go_on(BlockContext *context, Note *note) noexcept nogil:
    """Back on the IOThread."""
    cdef BlockRequest *request = <BlockRequest *> note
    cdef Image *image = <Image *> request.backend.own
    cdef int result = request.result
    has_ended(&context.gathering, clock_ns() - request.start)
    if result < 0:
        result = meaning(image, result)
    elif request.flags & BLOCK_FUA and request.stage == MOVING and (
            request.op == BLOCK_WRITE or request.op == BLOCK_ZERO):
        request.stage = SYNCING
        if start(image, request) == BLOCK_PENDING:
            return
        result = request.result
    context.complete(context, request, result)


cdef int meaning(Image *image, int error) noexcept nogil:
    """What an error of librbd's is to the host."""
    if error == -ESHUTDOWN or error == -EROFS and not image.read_only:
        # The cluster has shut us out, or another client has the lock: the disk is elsewhere now.
        store32(&image.away, 1)
        eventfd_write(image.news_fd, 1)
        return -EAGAIN
    return -ENOSPC if error == -EDQUOT else error


cdef void news(void *arg) noexcept nogil:
    """In a thread of librbd's: the image's header has changed."""
    eventfd_write((<Image *> arg).news_fd, 1)
