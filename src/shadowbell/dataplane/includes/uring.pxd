# liburing, as far as the IOThreads and the file back end use it.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.types cimport off_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from *:
    """
    #define _GNU_SOURCE 1
    #include <liburing.h>
    #include <errno.h>
    #include <poll.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* linux/io_uring.h of Linux 6.13 and 6.15, which liburing 2.3 doesn't have yet. */
    enum { SB_READV_FIXED = 60, SB_WRITEV_FIXED = 61 };
    enum { SB_CLONE_BUFFERS = 30, SB_DST_REPLACE = 2 };
    struct sb_clone_buffers { uint32_t src_fd, flags, src_off, dst_off, nr, pad[3]; };

    /* Have ring know, from slot to on, the first count buffers that source has registered; 0 or
       -errno. Without the replace flag a ring would take buffers only while it has none. */
    static inline int sb_uring_clone_buffers(struct io_uring *ring, int source, uint32_t to,
                                             uint32_t count)
    {
        struct sb_clone_buffers clone = {
            .src_fd = (uint32_t)source, .flags = SB_DST_REPLACE, .dst_off = to, .nr = count };
        return syscall(__NR_io_uring_register, ring->ring_fd, SB_CLONE_BUFFERS, &clone, 1) < 0
            ? -errno : 0;
    }

    /* Completions can wait in the kernel for us to ask for them (deferred task work); the ring
       says so in a word we can read without a system call. */
    static inline int sb_uring_pending(struct io_uring *ring)
    {
        return (IO_URING_READ_ONCE(*ring->sq.kflags)
                & (IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN)) != 0;
    }
    /* Run what a ring that polls its devices has to do; waits for nothing. */
    static inline int sb_uring_poll(struct io_uring *ring)
    {
        return io_uring_enter(ring->ring_fd, 0, 0, IORING_ENTER_GETEVENTS, NULL);
    }
    static inline unsigned sb_uring_ready(struct io_uring *ring) { return io_uring_cq_ready(ring); }
    """
    struct io_uring:
        int ring_fd
    struct io_uring_params:
        uint32_t flags
        uint32_t cq_entries
        uint32_t sq_thread_idle
    struct io_uring_sqe:
        uint8_t opcode
        uint8_t flags
        int fd
        uint64_t off
        uint32_t cmd_op
        uint64_t addr
        uint32_t len
        uint32_t rw_flags
        uint16_t buf_index
        uint64_t addr3
        uint8_t cmd[0]
    struct io_uring_cqe:
        uint64_t user_data
        int res
        uint32_t flags
    struct __kernel_timespec:
        int64_t tv_sec
        long long tv_nsec

    enum:
        IORING_SETUP_CQSIZE
        IORING_SETUP_SINGLE_ISSUER
        IORING_SETUP_DEFER_TASKRUN
        IORING_SETUP_COOP_TASKRUN
        IORING_SETUP_TASKRUN_FLAG
        IORING_SETUP_IOPOLL
        IORING_SETUP_SQPOLL
        IORING_SETUP_SQE128
        IORING_SETUP_CQE32
        IORING_OP_URING_CMD
        IORING_OP_READ_FIXED
        IORING_OP_WRITE_FIXED
        IORING_OP_READV_FIXED "SB_READV_FIXED"
        IORING_OP_WRITEV_FIXED "SB_WRITEV_FIXED"
        IOSQE_FIXED_FILE
        IORING_FSYNC_DATASYNC
        POLLIN
        POLLOUT
        POLLRDHUP

    int io_uring_queue_init_params(unsigned entries, io_uring *ring, io_uring_params *p) nogil
    int io_uring_queue_init(unsigned entries, io_uring *ring, unsigned flags) nogil
    void io_uring_queue_exit(io_uring *ring) nogil
    io_uring_sqe *io_uring_get_sqe(io_uring *ring) nogil
    void io_uring_sqe_set_data64(io_uring_sqe *sqe, uint64_t data) nogil
    unsigned io_uring_sq_ready(io_uring *ring) nogil
    unsigned io_uring_sq_space_left(io_uring *ring) nogil
    int io_uring_register_ring_fd(io_uring *ring) nogil
    int io_uring_register_files_sparse(io_uring *ring, unsigned count) nogil
    int io_uring_register_files_update(io_uring *ring, unsigned first, const int *files,
                                       unsigned count) nogil
    struct io_uring_probe:
        pass
    io_uring_probe *io_uring_get_probe_ring(io_uring *ring) nogil
    void io_uring_free_probe(io_uring_probe *probe) nogil
    bint io_uring_opcode_supported(const io_uring_probe *probe, int op) nogil
    int io_uring_register_buffers_sparse(io_uring *ring, unsigned count) nogil
    int io_uring_register_buffers_update_tag(io_uring *ring, unsigned first, const iovec *buffers,
                                             const uint64_t *tags, unsigned count) nogil
    int io_uring_unregister_buffers(io_uring *ring) nogil
    int uring_clone_buffers "sb_uring_clone_buffers"(io_uring *ring, int source, uint32_t to,
                                                     uint32_t count) noexcept nogil
    int io_uring_wait_cqe(io_uring *ring, io_uring_cqe **cqe) nogil
    int io_uring_submit(io_uring *ring) nogil
    int io_uring_submit_and_get_events(io_uring *ring) nogil
    int io_uring_get_events(io_uring *ring) nogil
    int io_uring_submit_and_wait_timeout(io_uring *ring, io_uring_cqe **cqe, unsigned wait_nr,
                                         __kernel_timespec *ts, void *sigmask) nogil
    int io_uring_submit_and_wait(io_uring *ring, unsigned wait_nr) nogil
    unsigned io_uring_peek_batch_cqe(io_uring *ring, io_uring_cqe **cqes, unsigned count) nogil
    void io_uring_cq_advance(io_uring *ring, unsigned nr) nogil
    void io_uring_prep_poll_add(io_uring_sqe *sqe, int fd, unsigned poll_mask) nogil
    void io_uring_prep_cancel64(io_uring_sqe *sqe, uint64_t user_data, int flags) nogil
    void io_uring_prep_read(io_uring_sqe *sqe, int fd, void *buf, unsigned n, uint64_t off) nogil
    void io_uring_prep_write(io_uring_sqe *sqe, int fd, const void *buf, unsigned n,
                             uint64_t off) nogil
    void io_uring_prep_rw(int op, io_uring_sqe *sqe, int fd, const void *addr, unsigned n,
                          uint64_t off) nogil
    void io_uring_prep_readv2(io_uring_sqe *sqe, int fd, const iovec *iov, unsigned n,
                              uint64_t off, int flags) nogil
    void io_uring_prep_writev2(io_uring_sqe *sqe, int fd, const iovec *iov, unsigned n,
                               uint64_t off, int flags) nogil
    void io_uring_prep_fsync(io_uring_sqe *sqe, int fd, unsigned flags) nogil
    void io_uring_prep_fallocate(io_uring_sqe *sqe, int fd, int mode, off_t off, off_t n) nogil
    bint uring_pending "sb_uring_pending"(io_uring *ring) noexcept nogil
    int uring_poll "sb_uring_poll"(io_uring *ring) nogil
    unsigned uring_ready "sb_uring_ready"(io_uring *ring) noexcept nogil
