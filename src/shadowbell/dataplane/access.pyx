"""The control plane's own reads and writes of the host's memory, admin commands' data among them."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from shadowbell.dataplane.dma cimport Memory, bus_error_count
from shadowbell.dataplane.events cimport push_event
from shadowbell.dataplane.includes.cpu cimport load32
from shadowbell.dataplane.includes.uring cimport iovec
from shadowbell.dataplane.layout cimport (
    DMA_READ_ACCESS,
    DMA_WRITE_ACCESS,
    EVENT_BUS_ERROR,
    MAX_IOVECS,
    MAX_TRANSFER,
    PAGE_SIZE,
    SQE_SIZE,
)
from shadowbell.dataplane.status cimport INVALID_FIELD_IN_COMMAND
from shadowbell.dataplane.transfer cimport build_iov

from shadowbell.dataplane.notices import TransferError


cdef class Access:
    """See engine.pyi for the methods."""

    def __cinit__(self, Memory memory not None):
        self.memory = memory

    cdef object read(self, uint64_t iova, uint64_t length):
        data = self.memory.read(iova, length)
        self.tell_bus_error()
        return data

    cdef int write(self, uint64_t iova, data) except -1:
        self.memory.write(iova, data)
        self.tell_bus_error()
        return 0

    cdef void tell_bus_error(self):
        """The control plane met shrunken memory: no IOThread may notice it for us."""
        cdef uint32_t count = load32(bus_error_count)
        if count != self.bus_errors_seen:
            self.bus_errors_seen = count
            if self.memory.bus_error():
                push_event(self.state, EVENT_BUS_ERROR, 0, 0, 0, 0, 0)

    cdef int write_data(self, sqe, data) except -1:
        cdef const uint8_t[::1] view = data
        self.transfer(sqe, <uint8_t *> &view[0] if len(data) else NULL, len(data), True)
        return 0

    cdef object read_data(self, sqe, uint64_t length):
        data = bytearray(length)
        cdef uint8_t[::1] view = data
        self.transfer(sqe, &view[0] if length else NULL, length, False)
        return bytes(data)

    cdef int transfer(self, const uint8_t[::1] sqe, uint8_t *data, uint64_t length,
                      bint to_host) except -1:
        cdef iovec iov[MAX_IOVECS]
        cdef uint8_t page[PAGE_SIZE]
        cdef uint32_t hint = 0, count = 0, i
        cdef int status
        if length == 0:
            return 0
        if length > MAX_TRANSFER or sqe.shape[0] != SQE_SIZE:
            raise TransferError(INVALID_FIELD_IN_COMMAND)
        status = build_iov(self.memory.table, &hint, &sqe[0], length,
                           DMA_WRITE_ACCESS if to_host else DMA_READ_ACCESS, iov, &count, page)
        if status:
            raise TransferError(status)
        for i in range(count):
            if to_host:
                memcpy(iov[i].iov_base, data, iov[i].iov_len)
            else:
                memcpy(data, iov[i].iov_base, iov[i].iov_len)
            data += iov[i].iov_len
        self.tell_bus_error()
        return 0
