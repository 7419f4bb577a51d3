"""The driver's memory: one memfd, mapped here and at a fixed iova in the device."""

import bisect
import ctypes
import fcntl
import mmap
import os
import threading
from typing import Final

PAGE: Final = 4096
HUGE: Final = 2 << 20


class Buffer:
    """A page-aligned, contiguous piece of an arena: ``view`` here, ``iova`` for the device."""

    def __init__(self, arena: "Arena", offset: int, size: int) -> None:
        self._arena = arena
        self.offset = offset
        self.size = size
        self.iova = arena.iova + offset
        self.address = arena.address + offset
        self.view = arena.view[offset : offset + size]

    def free(self) -> None:
        """Give the pages back; the device must be done with them."""
        self.view.release()
        self._arena.release(self.offset, self.size)


class Arena:
    """``size`` bytes (rounded up to 2 MiB) of shared memory with a first-fit page allocator.

    ``iova`` is where the device sees it. Threads with queues of their own share it: allocating and
    releasing take turns. Raises OSError when the kernel has no memory for it.
    """

    def __init__(self, size: int, iova: int = 1 << 32) -> None:
        self.size = -(-size // HUGE) * HUGE
        self.iova = iova
        self.fd = os.memfd_create("shadowbell-driver", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.size)
        # As QEMU's memory is: what can't shrink may be pinned.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._map = mmap.mmap(self.fd, self.size, mmap.MAP_SHARED)
        self.view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._free: list[tuple[int, int]] = [(0, self.size)]  # (offset, size), by offset
        self._lock = threading.Lock()

    def allocate(self, size: int, *, align: int = PAGE, fill: int | None = 0) -> Buffer:
        """Return a buffer of at least ``size`` bytes in whole pages; raises MemoryError.

        Every byte is ``fill``; with None it is what the last user left.
        """
        need = -(-size // PAGE) * PAGE
        with self._lock:
            start = self._take(need, align)
        buffer = Buffer(self, start, need)
        if fill is not None:
            ctypes.memset(buffer.address, fill, need)
        return buffer

    def _take(self, need: int, align: int) -> int:
        for number, (offset, length) in enumerate(self._free):
            start = -(-offset // align) * align
            spare = offset + length - start - need
            if spare < 0:
                continue
            parts = [(offset, start - offset), (start + need, spare)]
            self._free[number : number + 1] = [part for part in parts if part[1]]
            return start
        raise MemoryError(f"no {need} bytes left in the driver's arena of {self.size}")

    def release(self, offset: int, size: int) -> None:
        """Return pages to the free list, joined with their neighbours."""
        with self._lock:
            place = bisect.bisect(self._free, (offset, size))
            if place < len(self._free) and offset + size == self._free[place][0]:
                size += self._free.pop(place)[1]
            if place and sum(self._free[place - 1]) == offset:
                place -= 1
                before, length = self._free.pop(place)
                offset, size = before, length + size
            self._free.insert(place, (offset, size))

    @property
    def free_bytes(self) -> int:
        """Bytes not handed out."""
        return sum(size for _, size in self._free)

    def close(self) -> None:
        """Unmap; every buffer must have been freed or forgotten."""
        self.view.release()
        try:
            self._map.close()
        except BufferError as error:
            raise RuntimeError("a buffer of the arena is still in use") from error
        os.close(self.fd)
