# The data plane's floor plan: every structure that an IOThread touches per command.
#
# Who may write what: a queue and its requests belong to the IOThread that serves it. The control
# plane changes them only while the engine is paused on that thread (operations.pyx), so the hot path
# takes no lock and sees no half-made change.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from shadowbell.block.backend cimport BlockContext, BlockRequest, BlockState, FixedRange
from shadowbell.dataplane.includes.uring cimport iovec
from shadowbell.dataplane.moderation cimport Moderation
from shadowbell.dataplane.pacing cimport Pace

cdef enum:
    PAGE_SIZE = 4096
    PAGE_SHIFT = 12
    SQE_SIZE = 64
    CQE_SIZE = 16
    MAX_QUEUES = 129           # 128 I/O queues and the admin queue
    MAX_ENTRIES = 4096
    SQ_PAGES = 64              # 4096 entries of 64 bytes
    CQ_PAGES = 16
    MAX_NAMESPACES = 256
    MAX_VECTORS = 130
    MAX_TRANSFER = 1048576     # bytes: MDTS 8 with 4 KiB pages
    MAX_IOVECS = 512           # a transfer's pieces; PRPs need 257 at most
    MAX_REQUESTS = 1024        # commands under way per IOThread
    MAX_SERVED = 131072        # queues per IOThread
    EVENT_RING = 64
    PHASE_SHIFT = 15
    HISTOGRAM_BUCKETS = 256    # log-linear: 4 buckets an octave of nanoseconds
    OPCODES = 16               # I/O opcodes counted one by one; the last takes all others

cdef enum Access:
    DMA_READ_ACCESS = 1
    DMA_WRITE_ACCESS = 2

cdef enum EventKind:
    EVENT_INVALID_REGISTER
    EVENT_INVALID_VALUE
    EVENT_IO_ERROR
    EVENT_BUS_ERROR

# --- memory -----------------------------------------------------------------------------------

cdef struct Segment:
    uint64_t iova
    uint64_t length
    uint8_t *host              # NULL: the client gave no descriptor for this range
    uint32_t access
    uint32_t mapping           # which file mapping it lies in

# Changed by the control plane, never under a reader: the engine is paused.
cdef struct DmaTable:
    uint32_t count
    Segment *segments          # by iova, not overlapping

# --- counters ---------------------------------------------------------------------------------

cdef struct Counters:
    # a line that every round changes
    uint64_t bytes_read
    uint64_t bytes_written
    uint64_t shadow_finds      # reads of a doorbell in memory that found work
    uint64_t eventidx_stores
    uint64_t interrupts        # eventfd writes
    uint64_t interrupts_suppressed  # rounds that posted without one of their own
    uint64_t arms
    uint64_t arms_lost         # arms that found new work on the second look
    # and those that a command and a round change one word of
    uint64_t commands[OPCODES]
    uint64_t latency[HISTOGRAM_BUCKETS]
    # seldom changed, the first by whoever takes the message
    uint64_t doorbells         # doorbell register writes that reached us
    uint64_t ioeventfd_wakeups
    uint64_t errors
    uint64_t media_errors
    uint64_t line_of_seldom[4]

# --- queues -----------------------------------------------------------------------------------
#
# By cache lines, which lines.pxd makes these structures begin with: what is only read while a queue
# is served, what its own thread changes, what other threads change. The host's words (doorbells,
# EventIdx, entries) are in its own memory, the counters in lines of their own.

cdef struct CompletionQueue:
    # its thread's, at every completion
    uint8_t **pages            # 4 KiB pages, NULL where the guest's memory is away
    uint64_t arrived           # ticks: when commands that complete here were last fetched
    uint64_t since             # ticks: when the first unsignalled entry was posted
    uint32_t entries
    uint32_t tail
    uint32_t phase
    uint32_t head              # as last read: only looked at when the queue seems full
    uint32_t reserved          # commands under way: each has its slot
    int vector                 # -1: no interrupts
    uint32_t unsignalled       # entries posted since the last interrupt; not 0: in the thread's list
    uint32_t gathered          # entries before tail that the host can't see yet
    bint gather                # more commands are to follow at once: entries may wait for their line
    bint urgent                # an unsignalled one is an error: not to be coalesced
    # a line
    uint64_t entry[8]          # the gathered entries
    # its thread's, once a round: interrupts.pyx, and what read_slot of doorbells.pxd needs
    uint32_t *head_doorbell    # the register's slot, or the shadow's
    uint32_t *head_eventidx    # NULL unless shadowed
    CompletionQueue *next_interrupt
    uint64_t held_until        # ticks; 0: being coalesced
    uint64_t delay             # ticks and
    uint32_t threshold         # entries of Interrupt Coalescing
    uint32_t counted           # unsignalled entries that batches has seen
    uint32_t batches           # rounds that posted them
    uint32_t stored
    bint host_stores
    uint16_t qid
    uint16_t line_of_rounds
    # a line
    Moderation moderation
    bint reachable             # all of its pages are mapped
    uint32_t line_of_moderation
    # others'
    EngineState *engine
    ThreadState *thread
    bint stalled               # a submission queue waits for room; who takes a head's message looks
    uint32_t posted            # a register value that the queue's own thread has yet to take
    uint64_t line_of_others[5]
    uint8_t *page_storage[CQ_PAGES]

cdef struct SubmissionQueue:
    # read for every command
    uint32_t *tail_doorbell    # the register's slot, or the shadow's
    uint32_t *tail_eventidx    # NULL unless shadowed
    uint8_t **pages
    CompletionQueue *cq
    EngineState *engine
    Counters *counters
    Held *held                 # commands that wait for a namespace's limits; NULL: admin queue
    uint32_t entries
    uint16_t qid
    uint16_t line_of_reads
    # its thread's
    uint32_t head              # consumed up to here
    uint32_t last_eventidx     # what we stored last
    uint32_t inflight
    uint32_t hint              # last DMA segment hit
    uint64_t idle_since        # ticks
    bint reachable             # all of its pages are mapped
    bint active                # in the thread's list of polled queues
    bint dead                  # its doorbell held nonsense: ignored until it is deleted
    # which values are the truth once a shadow exists: see doorbells.pxd
    uint32_t stored            # the last value we put into the slot ourselves
    bint host_stores           # the host was seen storing to the slot
    uint32_t line_of_thread[5]
    # others'
    ThreadState *thread        # NULL while the queue moves; only that thread itself changes it
    uint64_t ioeventfd_value   # the kernel's to write
    uint32_t rung              # set by whoever takes a doorbell message, cleared by the thread
    uint32_t posted            # a register value that the queue's own thread has yet to take
    int ioeventfd              # -1, or what the client may write instead of the register
    bint ioeventfd_awaited     # the thread's ring reads it
    bint ioeventfd_cancelled
    uint32_t line_of_others[7]
    uint8_t *page_storage[SQ_PAGES]

cdef struct NamespaceEntry:
    BlockState *backend
    uint64_t blocks
    uint32_t lba_shift
    bint read_only
    Throttle *throttle         # NULL: no limits

# --- limits (throttle.pxd) ----------------------------------------------------------------------

# Of a namespace; all IOThreads change the two times, the control plane the rest.
cdef struct Throttle:
    uint64_t next_command      # ticks: when the next command may start
    uint64_t next_byte
    uint64_t command_cost      # ticks; 0: no limit
    uint64_t byte_cost         # ticks << BYTE_SHIFT; 0: no limit
    uint64_t burst             # ticks that may be saved up

cdef struct HeldCommand:
    uint64_t arrived           # ticks
    uint32_t next              # the following one's number, 0: none
    uint8_t sqe[SQE_SIZE]

# What one queue holds of one namespace's commands, oldest first, by their numbers from 1.
cdef struct Flow:
    uint64_t due               # ticks: when the first may start
    SubmissionQueue *sq
    Flow *left
    Flow *right
    uint32_t rank
    uint32_t index             # of the namespace
    uint32_t first
    uint32_t last

cdef struct Held:
    uint32_t count
    uint32_t used              # commands beyond have never been taken
    uint32_t spare
    Flow flows[MAX_NAMESPACES]
    HeldCommand commands[MAX_ENTRIES]

# --- a command under way ----------------------------------------------------------------------

cdef enum Step:
    STEP_BLOCK                 # one block request is the whole command
    STEP_COMPARE               # read into a bounce buffer, compare with the host's data
    STEP_VERIFY                # read piece by piece, throw away
    STEP_RANGES                # one discard per range
    STEP_FLUSH_ALL             # one flush per namespace

cdef struct Request:
    BlockRequest block         # first: the ring's user_data points here
    SubmissionQueue *sq
    NamespaceEntry *ns
    uint64_t start             # ticks
    uint64_t lba
    uint32_t nsid
    uint32_t index             # of the next range or piece
    uint32_t count             # ranges
    uint32_t data_iovs         # STEP_COMPARE: the host's pieces
    uint64_t data_length       # bytes that the command moves
    uint16_t cid
    uint8_t opcode
    uint8_t step
    void *scratch              # a bounce buffer held for the command's life
    Request *next_waiting
    iovec iov[MAX_IOVECS + 1]      # the last is for scratch

# --- a controller's I/O half --------------------------------------------------------------------

cdef struct EventRecord:
    int kind
    uint16_t qid
    uint16_t cid
    uint32_t status            # Do Not Retry in bit 14, the completion's phase in PHASE_SHIFT
    uint32_t nsid
    uint64_t lba

cdef struct EngineState:
    DmaTable *table
    NamespaceEntry *namespaces[MAX_NAMESPACES]
    SubmissionQueue *sqs[MAX_QUEUES]
    CompletionQueue *cqs[MAX_QUEUES]
    int vectors[MAX_VECTORS]       # eventfds, -1 where there is none
    uint32_t *doorbells            # the doorbell page: 1024 registers
    uint32_t max_queues
    bint mapped
    bint always_fua                # the volatile write cache is off
    int notify_fd
    uint32_t admin_rung
    uint32_t admin_seen_tail       # mapped: the admin tail that was last told
    # events for the control plane, a ring under a spin lock: written on errors only
    uint32_t event_lock
    uint32_t event_count
    uint32_t events_lost
    EventRecord events[EVENT_RING]
    Counters *counters             # MAX_QUEUES of them, kept over queue deletions
    Channel *channel

# --- the client's socket --------------------------------------------------------------------------

cdef enum Owner:
    OWNER_NONE
    OWNER_THREAD
    OWNER_CONTROL

cdef enum:
    CHANNEL_BUFFER = 131072
    CHANNEL_FDS = 64

cdef struct Channel:
    int fd
    int owner
    uint32_t waiting               # the control plane has something to take
    int error                      # 0, or why the stream ended: -1 end of file, else errno
    bint polled                    # the thread's ring waits for it
    bint held                      # its engine is paused
    bint ready                     # became readable while held
    uint32_t start                 # unread bytes: [start, end)
    uint32_t end
    uint32_t fd_mark               # descriptors belong to the message that holds byte fd_mark - 1
    uint32_t fd_count
    int fds[CHANNEL_FDS]
    EngineState *engine
    ThreadState *thread
    uint8_t buffer[CHANNEL_BUFFER]

# --- an IOThread ----------------------------------------------------------------------------------

cdef enum OpKind:
    OP_NONE
    OP_PAUSE                       # stop touching an engine, once its commands are done
    OP_RESUME
    OP_RELEASE                     # let go of a completion queue and all that use it
    OP_ADOPT                       # serve them from now on
    OP_CHANNEL_OPEN
    OP_CHANNEL_CLOSE
    OP_ENTER                       # make a back end's state in the thread
    OP_LEAVE                       # give it back
    OP_ENTER_RANGE                 # have the rings know memory that is pinned
    OP_LEAVE_RANGE                 # have them forget it
    OP_STOP

# One mailbox slot: who posts an operation waits for it, and the next one for both.
cdef struct Mailbox:
    int kind
    EngineState *engine
    BlockState *backend
    FixedRange *memory
    int error                      # of OP_ENTER: 0 or -errno
    CompletionQueue *cq
    uint32_t posted
    uint32_t done
    uint32_t abandoned             # OP_RELEASE takes too long: keep it
    bint kept                      # and so it was

cdef extern from *:
    """
    #define SB_NEVER UINT64_MAX
    """
    uint64_t NEVER "SB_NEVER"          # ticks

cdef struct ThreadState:
    BlockContext block             # first: back ends are given it
    uint64_t line_before_others[7]
    Mailbox mailbox
    uint32_t sleeping
    uint32_t kicked                # some queue has been rung by another thread
    uint64_t line_after_others[7]
    int kick_fd
    int done_fd
    uint64_t kick_value
    SubmissionQueue **queues       # all that this thread serves
    uint32_t queue_count
    SubmissionQueue **active
    uint32_t active_count
    CompletionQueue *interrupts    # with unsignalled entries
    Request *requests
    Request **free_requests
    uint32_t free_count
    Request *waiting               # commands that wait for a bounce buffer or a ring entry
    Request **waiting_tail
    Flow *held                     # the earliest of what waits for limits
    uint64_t now                   # ticks, read once a round
    uint32_t finished_now          # commands that ended while they were being started
    Pace pace
    int statistics                 # the kernel's on this thread: /proc/thread-self/schedstat, or -1
    uint32_t io_queue_count        # of queues: the admin queues left out
    uint32_t mapped_count          # active queues whose doorbell page is mapped: nobody can wake us
    EngineState *pausing           # not to be fetched from: OP_PAUSE waits for its commands
    bint wide_awaited              # the ring waits for the ring of NVMe commands
    uint32_t bus_errors_seen
    uint64_t busy                  # ticks of the rounds that found work
    uint64_t busy_alarm            # the control plane is told when busy has come so far
    int alarm_fd
    uint8_t *prp_page              # a PRP or SGL list's copy
