"""The clients' memory, pinned and made known to the IOThreads' rings.

The control plane says which files it maps and which no more, and waits for nothing. A background
thread pins each file once, whatever the number of its DMA maps, and has the IOThreads' rings take
the buffers; until then, and where it fails, transfers go the plain way. A mapping that the control
plane has let go of stays in our address space until every ring has forgotten it: no other memory
can come to lie at an address that a ring still knows.

A registered buffer is the pages that were in the file when it was pinned. A file that can shrink
could grow again with other pages, so only files that are sealed against it are pinned. Where a
mapping had to be replaced by zero pages (dma.pyx), its buffers are given up.
"""

from libc.errno cimport EINVAL, ENOMEM, ENOSPC, EPERM
from libc.stdint cimport uint32_t, uint64_t

import logging
import os
import queue
import threading

from shadowbell.block.fixed cimport MAX_SLOTS, PinnedMemory, chunk_count
from shadowbell.dataplane.dma cimport Mapping
from shadowbell.dataplane.iothread cimport IOThread
from shadowbell.dataplane.layout cimport OP_ENTER_RANGE, OP_LEAVE_RANGE

log = logging.getLogger("shadowbell")


class Unwanted(Exception):
    """The control plane let go of the memory while it was being pinned."""


cdef class Pins:
    """``iothreads`` run until ``close`` has returned."""

    def __init__(self, iothreads):
        self.threads = list(iothreads)
        self.wanted = set()
        self.held = {}
        self.told = set()
        self.slots = bytearray(MAX_SLOTS)
        self.jobs = queue.SimpleQueue()
        self.worker = threading.Thread(target=self.work, name="pins", daemon=True)
        self.worker.start()

    def close(self):
        """End the thread; every engine must have been closed before."""
        self.jobs.put(None)
        self.worker.join()

    # --- the control plane's ------------------------------------------------------------------

    def add(self, Mapping mapping not None):
        """Have it pinned, if it can be."""
        if not mapping.sealed:
            self.tell("guest memory that could shrink isn't registered with io_uring: give QEMU a "
                      "memory-backend-memfd, which is sealed")
        elif mapping.writable:
            self.wanted.add(mapping)
            self.jobs.put(mapping)

    def drop(self, Mapping mapping not None):
        """Have the rings forget it."""
        if mapping in self.wanted:
            self.wanted.remove(mapping)
            self.jobs.put(mapping)

    def holds(self, Mapping mapping not None):
        """Do the rings know it?"""
        return mapping in self.held

    def tell(self, reason):
        if reason not in self.told:
            self.told.add(reason)
            log.warning("%s", reason)

    # --- the background thread's --------------------------------------------------------------

    def work(self):
        while (mapping := self.jobs.get()) is not None:
            try:
                self.settle(mapping)
            except Unwanted:
                pass
            except OSError as error:
                self.tell(what_to_do(error))
            except Exception:
                log.exception("registering guest memory failed")
            mapping = None  # its end must not wait for the next one

    cdef int settle(self, Mapping mapping) except -1:
        """Do what the control plane wants by now."""
        if mapping in self.wanted:
            if mapping not in self.held:
                self.pin(mapping)
        elif mapping in self.held:
            self.release(self.held.pop(mapping))
        return 0

    cdef int pin(self, Mapping mapping) except -1:
        cdef PinnedMemory pinned = PinnedMemory(
            <uint64_t> mapping.base, mapping.length,
            self.take_slots(chunk_count(mapping.length)))
        try:
            pinned.begin()
            while not pinned.pin_more():
                if mapping not in self.wanted:
                    raise Unwanted
            self.register(pinned)
        except BaseException:
            self.release(pinned)
            raise
        self.held[mapping] = pinned
        return 0

    cdef int register(self, PinnedMemory pinned) except -1:
        cdef IOThread thread
        for thread in self.threads:
            thread.post(OP_ENTER_RANGE, NULL, NULL, NULL, -1, &pinned.memory)
            if pinned.memory.error:
                error = -pinned.memory.error
                raise OSError(error, os.strerror(error))
        return 0

    cdef int release(self, PinnedMemory pinned) except -1:
        cdef IOThread thread
        cdef uint32_t first = pinned.memory.slot, count = pinned.memory.chunks
        for thread in self.threads:
            thread.post(OP_LEAVE_RANGE, NULL, NULL, NULL, -1, &pinned.memory)
        pinned.close()
        self.slots[first : first + count] = bytes(count)
        return 0

    cdef int take_slots(self, uint32_t count) except -1:
        cdef int first = self.slots.find(bytes(count))
        if first < 0:
            raise OSError(ENOSPC, "all buffers of the rings are in use")
        self.slots[first : first + count] = b"\1" * count
        return first


def what_to_do(error):
    """A line for the log about memory that can't be registered."""
    line = f"guest memory isn't registered with io_uring: {error.strerror}"
    if error.errno in (ENOMEM, EPERM):
        return (f"{line}: raise LimitMEMLOCK= (systemd) or ulimit -l above the guests' memory, "
                "or give CAP_IPC_LOCK")
    if error.errno == EINVAL:
        return f"{line}: it needs Linux 6.13 or newer"
    return line
