# The driver's rings: C structures of a submission queue, a completion queue and a doorbell, and
# the few operations both the command path (hostqueue) and the load loop (hostload) inline.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <stdint.h>
    #include <sys/socket.h>
    #include <time.h>
    #include <unistd.h>

    #define sb_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define sb_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define sb_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define sb_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

    static inline uint64_t sb_nanoseconds(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    }
    #if defined(__x86_64__)
    #include <x86intrin.h>
    static inline uint64_t sb_ticks(void) { return __rdtsc(); }
    static inline void sb_pause(void) { _mm_pause(); }
    #else
    static inline uint64_t sb_ticks(void) { return sb_nanoseconds(); }
    static inline void sb_pause(void) { }
    #endif

    static inline int sb_post(int fd, const void *data, int length)
    {
        for (;;) {
            ssize_t sent = send(fd, data, (size_t)length, MSG_NOSIGNAL);
            if (sent == length) return 0;
            if (sent >= 0) return EIO;      /* a torn message: the stream is lost */
            if (errno != EINTR) return errno;
        }
    }
    static inline int sb_signal(int fd)
    {
        uint64_t one = 1;
        for (;;) {
            if (write(fd, &one, 8) == 8) return 0;
            if (errno != EINTR) return errno;
        }
    }
    """
    uint32_t sb_acquire(const volatile uint32_t *) noexcept
    uint32_t sb_relaxed(const volatile uint32_t *) noexcept
    void sb_release(volatile uint32_t *, uint32_t) noexcept
    void sb_fence() noexcept
    uint64_t sb_nanoseconds() noexcept
    uint64_t sb_ticks() noexcept
    void sb_pause() noexcept
    int sb_post(int, const void *, int) noexcept
    int sb_signal(int) noexcept


ctypedef struct Cqe:
    uint32_t dw0
    uint32_t dw1
    uint16_t sqhd
    uint16_t sqid
    uint32_t tail          # CID in 15:0, phase in 16, status in 31:17


ctypedef struct Doorbell:
    uint32_t *shadow       # this doorbell's slot in the shadow page, NULL when not shadowed
    uint32_t *event        # its EventIdx slot
    uint32_t *page         # the register itself when the doorbell page is mapped
    int socket
    int ioeventfd          # -1: none offered
    int error              # errno of a write that failed; sticky
    uint32_t current       # the value last rung
    uint64_t registers     # posted REGION_WRITE messages
    uint64_t wakeups       # ioeventfd writes
    uint64_t stores        # stores to the mapped register
    uint64_t updates       # values rung in whatever way
    uint8_t message[36]    # header, region access, value


ctypedef struct Sq:
    Doorbell db
    uint8_t *ring          # entries * 64 bytes
    uint16_t *free_cids    # a stack
    uint8_t *busy          # by command identifier
    uint32_t n_free
    uint32_t slots         # command identifiers: at most entries - 1, so the ring can't overrun
    uint32_t entries
    uint32_t tail
    uint32_t head          # as the device reported it
    uint16_t qid
    uint32_t dead          # set from another thread: no more commands, don't wait for any


ctypedef struct Cq:
    Doorbell db
    uint8_t *ring          # entries * 16 bytes
    uint32_t entries
    uint32_t head
    uint32_t phase
    int irq                # eventfd, -1: polled
    uint64_t interrupts


cdef inline bint need_event(uint16_t event, uint16_t new, uint16_t old) noexcept nogil:
    # Linux' nvme_dbbuf_need_event(): did the step from old to new pass the event index?
    return <uint16_t>(new - event - 1) < <uint16_t>(new - old)


cdef inline void write_register(Doorbell *db, uint32_t value) noexcept nogil:
    if db.page != NULL:
        db.stores += 1
        sb_release(db.page, value)
        return
    db.registers += 1
    (<uint32_t *>&db.message[32])[0] = value
    cdef int failed = sb_post(db.socket, db.message, 36)
    if failed:
        db.error = failed


cdef inline void ring_doorbell(Doorbell *db, uint32_t value) noexcept nogil:
    cdef uint32_t old = db.current
    cdef int failed
    db.current = value
    db.updates += 1
    if db.shadow == NULL:
        write_register(db, value)
        return
    sb_release(db.shadow, value)      # the SQEs before the tail
    sb_fence()                        # the tail before the read: the device does the reverse
    if not need_event(<uint16_t>sb_relaxed(db.event), <uint16_t>value, <uint16_t>old):
        return
    if db.ioeventfd < 0:
        write_register(db, value)
        return
    db.wakeups += 1
    failed = sb_signal(db.ioeventfd)
    if failed:
        db.error = failed


cdef inline Cqe *cq_peek(Cq *cq) noexcept nogil:
    cdef Cqe *entry = <Cqe *>(cq.ring + (<uint64_t>cq.head << 4))
    if ((sb_acquire(&entry.tail) >> 16) & 1) != cq.phase:
        return NULL
    return entry


cdef inline void cq_advance(Cq *cq) noexcept nogil:
    cq.head += 1
    if cq.head == cq.entries:
        cq.head = 0
        cq.phase ^= 1


cdef inline uint8_t *sq_next(Sq *sq) noexcept nogil:
    # The slot at the tail. Room is sure: a command identifier was taken, and there are fewer
    # of them than slots.
    cdef uint8_t *place = sq.ring + (<uint64_t>sq.tail << 6)
    sq.tail += 1
    if sq.tail == sq.entries:
        sq.tail = 0
    return place
