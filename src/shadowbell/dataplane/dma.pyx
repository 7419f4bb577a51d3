"""The guest's memory: what the client mapped, by IO virtual address.

Each file is mapped into this process once and whole, however many ranges of it the client maps.
A range is a segment: IO virtual address, length, host address, access. The table of segments is
changed in place, with the engine's IOThreads paused.
"""

from libc.errno cimport errno
from libc.signal cimport SIG_DFL, SIGBUS
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memmove
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)

import fcntl
import os
import stat

from shadowbell.dataplane.includes.cpu cimport add32, load64, store64
from shadowbell.dataplane.layout cimport (
    DMA_READ_ACCESS,
    DMA_WRITE_ACCESS,
    PAGE_SIZE,
    DmaTable,
    Segment,
)
from shadowbell.dataplane.live cimport count_live


cdef extern from "<signal.h>" nogil:
    ctypedef struct siginfo_t:
        void *si_addr
    ctypedef struct sigset_t:
        pass
    struct sigaction_s "sigaction":
        void (*sa_sigaction)(int, siginfo_t *, void *) noexcept nogil
        void (*sa_handler)(int) noexcept nogil
        int sa_flags
        sigset_t sa_mask
    int sigaction(int number, const sigaction_s *new, sigaction_s *old)
    int sigemptyset(sigset_t *set)
    enum:
        SA_SIGINFO
        SA_RESTART

cdef extern from "<sys/mman.h>" nogil:
    enum:
        MAP_NORESERVE

cdef enum:
    MAX_MAPPINGS = 65536   # of the whole process
    MAX_SEGMENTS = 65535   # of one client: max_dma_maps in the version reply


class DmaError(Exception):
    """An IO virtual address that the client hasn't mapped, or not for this access."""


# --- a client that shrinks its file -------------------------------------------------------------
# Touching a page that is no longer in the file raises SIGBUS in whatever thread does it. The handler
# finds the mapping by address, puts private zero pages over it and marks it; the thread goes on, and
# the engine fails that controller. The registry is read by the handler, so it is plain memory, and a
# slot's end is stored last when it is taken and cleared first when it is given back.

cdef struct MappingSlot:
    uint64_t start
    uint64_t end       # 0: free
    uint64_t failed

cdef uint32_t bus_errors = 0
bus_error_count = &bus_errors

cdef MappingSlot *registry = <MappingSlot *> calloc(MAX_MAPPINGS, sizeof(MappingSlot))
cdef uint32_t registry_used = 0
if registry == NULL:
    raise MemoryError("no memory for the registry of mappings")


cdef void on_bus_error(int number, siginfo_t *info, void *context) noexcept nogil:
    cdef uint64_t address = <uint64_t> info.si_addr
    cdef uint32_t i
    cdef MappingSlot *slot
    cdef sigaction_s action
    for i in range(registry_used):
        slot = &registry[i]
        if load64(&slot.end) > address and slot.start <= address:
            store64(&slot.failed, 1)
            add32(bus_error_count, 1)
            if mmap(<void *> slot.start, slot.end - slot.start, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED:
                return
    # Not the guest's doing: let the fault happen again and end the process as usual.
    sigemptyset(&action.sa_mask)
    action.sa_flags = 0
    action.sa_handler = SIG_DFL
    sigaction(SIGBUS, &action, NULL)


cdef void install_handler() noexcept:
    cdef sigaction_s action
    sigemptyset(&action.sa_mask)
    action.sa_flags = SA_SIGINFO | SA_RESTART
    action.sa_sigaction = on_bus_error
    sigaction(SIGBUS, &action, NULL)


cdef bint is_sealed(int fd):
    """Does the file keep its size, whatever the client does? QEMU's memory-backend-memfd does."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK != 0
    except OSError:
        return False  # no memory file


cdef class Mapping:
    """One file of the client's in our address space."""

    def __cinit__(self, int fd, uint64_t offset, uint64_t length, bint writable, key):
        global registry_used
        cdef uint32_t i
        cdef void *base = mmap(NULL, length, PROT_READ | (PROT_WRITE if writable else 0),
                               MAP_SHARED | MAP_NORESERVE, fd, offset)
        if base == MAP_FAILED:
            raise OSError(errno, "can't map the client's memory")
        install_handler()  # each time: others (faulthandler) may have put theirs in its place
        self.base = <uint8_t *> base
        self.offset = offset
        self.length = length
        self.writable = writable
        self.key = key
        self.sealed = key is not None and is_sealed(fd)
        for i in range(MAX_MAPPINGS):
            if registry[i].end == 0:
                break
        else:
            munmap(base, length)
            self.base = NULL
            raise OSError(12, "too many mappings in this process")
        self.slot = i
        registry[i].start = <uint64_t> base
        registry[i].failed = 0
        store64(&registry[i].end, <uint64_t> base + length)
        registry_used = max(registry_used, i + 1)
        count_live(b"mappings", 1)

    def __dealloc__(self):
        if self.base != NULL:
            store64(&registry[self.slot].end, 0)
            with nogil:  # freeing gigabytes takes long, when nobody else has the file any more
                munmap(self.base, self.length)
            count_live(b"mappings", -1)


cdef class Memory:
    """One client's DMA maps. All methods are the control plane's; IOThreads read ``table``."""

    def __cinit__(self, pins=None):
        self.mappings = []
        self.pins = pins
        self.table = <DmaTable *> calloc(1, sizeof(DmaTable))
        if self.table == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.table != NULL:
            free(self.table.segments)
            free(self.table)

    def check_map(self, uint64_t iova, uint64_t length):
        """Raise ``ValueError`` where [iova, iova + length) can't become a segment."""
        if length == 0 or (iova | length) & (PAGE_SIZE - 1):
            raise ValueError("a DMA map must be whole 4 KiB pages")
        if iova + length < iova and iova + length != 0:
            raise ValueError("a DMA map wraps around the address space")
        if self.table.count >= MAX_SEGMENTS:
            raise ValueError("too many DMA maps")
        cdef uint32_t i = self.position(iova)
        if i > 0 and iova - self.table.segments[i - 1].iova < self.table.segments[i - 1].length:
            raise ValueError("a DMA map overlaps an older one")
        if i < self.table.count and self.table.segments[i].iova - iova < length:
            raise ValueError("a DMA map overlaps an older one")

    def map(self, uint64_t iova, uint64_t length, fd, uint64_t offset, uint32_t access):
        """Add a segment; ``fd`` None: a range we know of but can't reach."""
        self.check_map(iova, length)
        cdef Mapping mapping = None
        cdef Segment segment
        segment.iova = iova
        segment.length = length
        segment.access = access
        segment.host = NULL
        segment.mapping = 0
        if fd is not None:
            mapping = self.mapping_for(fd, offset, length)
            if access & DMA_WRITE_ACCESS and not mapping.writable:
                segment.access &= ~(<uint32_t> DMA_WRITE_ACCESS)
            segment.host = mapping.base + (offset - mapping.offset)
            segment.mapping = mapping.slot
        cdef uint32_t i = self.position(iova)
        cdef DmaTable *table = self.table
        self.make_room()
        memmove(&table.segments[i + 1], &table.segments[i], (table.count - i) * sizeof(Segment))
        table.segments[i] = segment
        table.count += 1
        if mapping is not None:
            if mapping.uses == 0:
                self.mappings.append(mapping)
                if self.pins is not None and mapping.key is not None:
                    self.pins.add(mapping)
            mapping.uses += 1

    def unmap(self, uint64_t iova, uint64_t length):
        """Remove the segments in the range; ``ValueError`` when it holds none, or cuts one."""
        cdef uint32_t first = self.position(iova), last, i
        cdef Segment *segment
        if first > 0:
            segment = &self.table.segments[first - 1]
            if iova - segment.iova < segment.length:
                raise ValueError("a DMA unmap cuts a map in two")
        last = first
        while last < self.table.count and self.table.segments[last].iova - iova < length:
            segment = &self.table.segments[last]
            if length - (segment.iova - iova) < segment.length:
                raise ValueError("a DMA unmap cuts a map in two")
            last += 1
        if first == last:
            raise ValueError("a DMA unmap of what isn't mapped")
        cdef DmaTable *table = self.table
        gone = {}
        for i in range(first, last):
            if self.table.segments[i].host != NULL:
                slot = self.table.segments[i].mapping
                gone[slot] = gone.get(slot, 0) + 1
        memmove(&table.segments[first], &table.segments[last],
                (table.count - last) * sizeof(Segment))
        table.count -= last - first
        cdef Mapping mapping
        for mapping in list(self.mappings):
            mapping.uses -= gone.get(mapping.slot, 0)
            if mapping.uses == 0:
                self.drop(mapping)

    def clear(self):
        """Remove every segment and mapping."""
        self.table.count = 0
        for mapping in list(self.mappings):
            self.drop(mapping)

    cdef int drop(self, Mapping mapping) except -1:
        self.mappings.remove(mapping)
        if self.pins is not None:
            self.pins.drop(mapping)
        return 0

    def read(self, uint64_t iova, uint64_t length):
        """Copy ``length`` bytes out of the guest's memory; raises ``DmaError``."""
        data = bytearray(length)
        cdef uint8_t[::1] view = data
        if length:
            self.copy_bytes(iova, &view[0], length, False)
        return bytes(data)

    def write(self, uint64_t iova, const uint8_t[::1] data not None):
        """Copy ``data`` into the guest's memory; raises ``DmaError``."""
        if data.shape[0]:
            self.copy_bytes(iova, <uint8_t *> &data[0], data.shape[0], True)

    cdef int copy_bytes(self, uint64_t iova, uint8_t *data, uint64_t length,
                        bint write) except -1:
        cdef uint32_t hint = 0
        cdef uint32_t access = DMA_WRITE_ACCESS if write else DMA_READ_ACCESS
        cdef uint64_t part
        cdef Segment *segment
        cdef uint8_t *host
        while length:
            segment = find_segment(self.table, &hint, iova)
            if segment == NULL or segment.host == NULL or not segment.access & access:
                raise DmaError(f"nothing is mapped for this access at {iova:#x}")
            part = min(length, segment.length - (iova - segment.iova))
            host = segment.host + (iova - segment.iova)
            if write:
                memcpy(host, data, part)
            else:
                memcpy(data, host, part)
            iova += part
            data += part
            length -= part
        return 0

    cpdef uint64_t pinned_bytes(self):
        cdef Mapping mapping
        cdef uint64_t total = 0
        if self.pins is not None:
            for mapping in self.mappings:
                total += mapping.length if self.pins.holds(mapping) else 0
        return total

    cpdef bint covers(self, uint64_t iova, uint64_t length):
        """Is any segment inside [iova, iova + length)?"""
        cdef uint32_t i = self.position(iova)
        return i < self.table.count and self.table.segments[i].iova - iova < length

    cpdef bint bus_error(self):
        """Has the client taken memory away that we then touched?"""
        cdef Mapping mapping
        cdef bint found = False
        for mapping in self.mappings:
            if registry[mapping.slot].failed:
                found = True
                if self.pins is not None:
                    self.pins.drop(mapping)  # zero pages are in its place: the old ones don't count
        return found

    cdef uint32_t position(self, uint64_t iova) noexcept:
        """Index of the first segment at or above iova."""
        cdef uint32_t low = 0, high = self.table.count, middle
        while low < high:
            middle = (low + high) >> 1
            if self.table.segments[middle].iova < iova:
                low = middle + 1
            else:
                high = middle
        return low

    cdef object mapping_for(self, int fd, uint64_t offset, uint64_t length):
        cdef Mapping mapping
        status = os.fstat(fd)
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        if offset & (PAGE_SIZE - 1):
            raise ValueError("a DMA map's file offset must be a multiple of 4 KiB")
        if not stat.S_ISREG(status.st_mode):
            return Mapping(fd, offset, length, writable, None)
        if offset + length < offset or offset + length > status.st_size:
            raise ValueError("a DMA map reaches beyond its file's end")
        key = (status.st_dev, status.st_ino)
        for mapping in self.mappings:
            if (mapping.key == key and not registry[mapping.slot].failed
                    and mapping.writable >= writable
                    and offset + length <= mapping.length):
                return mapping
        return Mapping(fd, 0, status.st_size, writable, key)

    cdef int make_room(self) except -1:
        """See to it that one more segment fits."""
        cdef Segment *segments
        if self.table.count == self.room:
            segments = <Segment *> realloc(
                self.table.segments, (2 * self.room + 16) * sizeof(Segment))
            if segments == NULL:
                raise MemoryError
            self.table.segments = segments
            self.room = 2 * self.room + 16
        return 0
