"""Verification: what every logical block should hold, and the stamps that tell."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free


cdef inline void stamp(uint64_t *words, uint64_t count, uint64_t lba, uint64_t generation,
                       uint64_t seed) noexcept nogil:
    cdef uint64_t base = mix(seed ^ mix(lba ^ (generation << 40)))
    cdef uint64_t i
    words[0] = lba
    words[1] = generation
    for i in range(2, count):
        words[i] = base + i * <uint64_t>0x9e3779b97f4a7c15


cdef inline bint stamped(const uint64_t *words, uint64_t count, uint64_t lba,
                         uint64_t seed) noexcept nogil:
    # Is this, in every word, what stamp() wrote for the generation it names?
    cdef uint64_t base = mix(seed ^ mix(lba ^ (words[1] << 40)))
    cdef uint64_t wrong = words[0] ^ lba
    cdef uint64_t i
    for i in range(2, count):
        wrong |= words[i] ^ (base + i * <uint64_t>0x9e3779b97f4a7c15)
    return wrong == 0


cdef class Verifier:
    """What every logical block should hold: the generation last written to it.

    A block is stamped with its LBA, its generation and a pattern of both; a read must return
    the generation whose write completed last. A write that was interrupted (reset, disconnect)
    leaves either outcome open until the next read settles it. Blocks never written through the
    verifier are not checked. Threads may share one as long as their LBA ranges are disjoint.
    """

    def __cinit__(self, uint64_t blocks, uint32_t lba_size, uint64_t seed=1):
        if blocks == 0 or lba_size < 64 or lba_size & 7:
            raise ValueError("a verifier needs blocks of at least 64 bytes")
        self.blocks, self.lba_size, self.seed = blocks, lba_size, seed
        self.stable = <uint32_t *>calloc(blocks, 4)
        self.latest = <uint32_t *>calloc(blocks, 4)
        if self.stable == NULL or self.latest == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.stable)
        free(self.latest)

    cdef void begin(self, uint64_t lba, uint64_t count, uint8_t *data) noexcept nogil:
        cdef uint64_t i
        for i in range(lba, lba + count):
            self.latest[i] += 1
            stamp(<uint64_t *>data, self.lba_size >> 3, i, self.latest[i], self.seed)
            data += self.lba_size

    cdef void written(self, uint64_t lba, uint64_t count) noexcept nogil:
        cdef uint64_t i
        for i in range(lba, lba + count):
            self.stable[i] = self.latest[i]

    cdef int64_t wrong(self, uint64_t lba, uint64_t count, const uint8_t *data) noexcept nogil:
        # The first wrong LBA, or -1.
        cdef uint64_t i, generation
        cdef const uint64_t *words
        for i in range(lba, lba + count):
            words = <const uint64_t *>data
            data += self.lba_size
            if self.latest[i] == 0:
                continue
            generation = words[1]
            if (generation != 0 and self.stable[i] <= generation <= self.latest[i]
                    and stamped(words, self.lba_size >> 3, i, self.seed)):
                self.stable[i] = <uint32_t>generation
                self.latest[i] = <uint32_t>generation
            elif self.stable[i] != 0:
                return <int64_t>i
        return -1

    def prepare(self, uint64_t lba, uint8_t[::1] data) -> None:
        """Stamp ``data`` (whole blocks) as the next write to ``lba``."""
        self.begin(lba, self.whole(lba, data.shape[0]), &data[0])

    def confirm(self, uint64_t lba, uint64_t count) -> None:
        """The write prepared for these blocks has completed."""
        self.whole(lba, count * self.lba_size)
        self.written(lba, count)

    def check(self, uint64_t lba, const uint8_t[::1] data) -> int | None:
        """Check what was read from ``lba``: None, or the first LBA that is wrong."""
        cdef int64_t lba_wrong = self.wrong(lba, self.whole(lba, data.shape[0]), &data[0])
        return None if lba_wrong < 0 else lba_wrong

    def forget(self, uint64_t lba, uint64_t count) -> None:
        """These blocks were changed some other way; don't check them until written again."""
        cdef uint64_t i
        self.whole(lba, count * self.lba_size)
        for i in range(lba, lba + count):
            self.stable[i] = 0
            self.latest[i] = 0

    def expects(self, uint64_t lba) -> tuple:
        """(generation completed, generation submitted) of a block."""
        self.whole(lba, self.lba_size)
        return self.stable[lba], self.latest[lba]

    cdef uint64_t whole(self, uint64_t lba, uint64_t length) except? 0:
        cdef uint64_t count = length // self.lba_size
        if count == 0 or length % self.lba_size or lba + count > self.blocks:
            raise ValueError("data isn't whole blocks inside the verified range")
        return count
