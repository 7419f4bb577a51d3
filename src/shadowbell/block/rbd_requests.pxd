from libc.stdint cimport uint32_t

from shadowbell.block.backend cimport BlockContext, BlockRequest
from shadowbell.block.includes.librbd cimport rbd_image_t

# What the IOThreads and librbd's threads share. Requests hold on to it while they are under way.
cdef struct Image:
    rbd_image_t handle
    bint read_only
    uint32_t away              # not ours to use any more: every request gets EAGAIN
    int news_fd                # for the watcher: something about the image has changed

cdef int rbd_submit(BlockContext *context, BlockRequest *request) noexcept nogil
cdef int rbd_advance(BlockContext *context, BlockRequest *request, int res) noexcept nogil
cdef void news(void *arg) noexcept nogil
