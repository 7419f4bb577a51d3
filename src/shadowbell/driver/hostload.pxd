# A load's state: what is touched per command, by one thread.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from shadowbell.driver.histogram cimport BUCKETS
from shadowbell.driver.hostqueue cimport pollfd
from shadowbell.driver.hostring cimport Cq, Sq

cdef enum:
    MAX_RINGS = 128
    OPCODE_FLUSH = 0
    OPCODE_WRITE = 1
    OPCODE_READ = 2


ctypedef struct Command:
    uint8_t sqe[64]                # a read or write, ready but for opcode and LBA
    uint8_t *data
    uint64_t started
    uint64_t unit
    uint8_t opcode


ctypedef struct Lane:
    Sq *sq
    Command *commands              # by command identifier
    uint16_t *ready                # identifiers free to go, a stack
    uint32_t n_ready
    uint64_t until_flush           # writes to start before a Flush is due


ctypedef struct Load:
    Lane lanes[MAX_RINGS]
    Cq *cqs[MAX_RINGS]
    pollfd vectors[MAX_RINGS]      # their interrupts, by the same index
    Lane *by_qid[256]
    uint32_t n_lanes
    uint32_t n_cqs
    uint64_t depth                 # commands in flight at most, of all lanes
    # the pattern
    uint64_t random
    uint64_t cursor
    uint64_t units                 # I/O-sized pieces of the range
    uint64_t first                 # LBA of the first
    uint64_t blocks                # LBAs of an I/O
    uint32_t writes                # of 65536
    uint32_t sequential
    uint64_t flush_every           # writes of a lane; without Flushes more than any load makes
    uint32_t sleep                 # on interrupts
    double tick                    # its nanoseconds
    uint64_t spin                  # ticks to poll before sleeping
    uint64_t watchdog              # ticks: see LoadSpec, 0: look without interrupts too
    uint8_t raised[MAX_RINGS]      # with a watchdog: may be looked into, by the same index as cqs
    uint8_t late[MAX_RINGS]        # with a watchdog: its head is to be rung after new commands
    uint64_t interval              # ticks from one start to the next, 0: as fast as possible
    uint64_t due                   # when the next may start
    uint64_t arrears               # ticks of delay that are made up for by a burst
    uint8_t *owned                 # by unit, when verifying: an I/O is on it
    # limits
    uint64_t limit                 # I/Os, 0: none
    uint64_t deadline              # ticks, 0: none
    uint64_t pause_at              # ticks: return for signals
    uint64_t stall                 # ticks without a completion that mean lost
    # results
    uint64_t issued
    uint64_t running
    uint64_t progress              # when something completed last
    uint64_t done_reads
    uint64_t done_writes
    uint64_t done_flushes
    uint64_t errors
    uint64_t mismatches
    uint64_t violations            # impossible completions
    uint64_t sleeps
    uint64_t missed                # completions that nobody told us of
    uint32_t first_error           # status
    int64_t first_mismatch         # LBA
    int failed                     # errno of a doorbell
    int dead                       # a queue was killed
    int stalled
    int stop
    uint64_t histogram[BUCKETS]
    uint64_t flush_histogram[BUCKETS]
