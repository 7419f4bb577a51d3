# Copies between a disk in memory and the host's, at what the machine gives.
#
# Random blocks of a large disk are in no cache. The C library's copy of 4 KiB waits for them with few
# loads under way; wide loads of several lines at a time halve that. What is written to the disk goes
# past the caches: it isn't read again soon, and its old content needn't be fetched to be overwritten.
# What is read for the host stays in the cache, where the host will look for it.

from libc.stdint cimport uint8_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__x86_64__)
    #include <immintrin.h>

    #define SB_WIDE 128  /* bytes a turn */

    __attribute__((target("avx2")))
    static inline void sb_wide_copy(uint8_t *to, const uint8_t *from, size_t size, int past_caches)
    {
        for (size_t i = 0; i < size; i += SB_WIDE) {
            const __m256i a = _mm256_loadu_si256((const __m256i *)(from + i));
            const __m256i b = _mm256_loadu_si256((const __m256i *)(from + i + 32));
            const __m256i c = _mm256_loadu_si256((const __m256i *)(from + i + 64));
            const __m256i d = _mm256_loadu_si256((const __m256i *)(from + i + 96));
            if (past_caches) {
                _mm256_stream_si256((__m256i *)(to + i), a);
                _mm256_stream_si256((__m256i *)(to + i + 32), b);
                _mm256_stream_si256((__m256i *)(to + i + 64), c);
                _mm256_stream_si256((__m256i *)(to + i + 96), d);
            } else {
                _mm256_storeu_si256((__m256i *)(to + i), a);
                _mm256_storeu_si256((__m256i *)(to + i + 32), b);
                _mm256_storeu_si256((__m256i *)(to + i + 64), c);
                _mm256_storeu_si256((__m256i *)(to + i + 96), d);
            }
        }
    }

    static inline int sb_can_copy_wide(const void *to, size_t size)
    {
        return size >= 512 && size % SB_WIDE == 0 && ((uintptr_t)to & 31) == 0
            && __builtin_cpu_supports("avx2");
    }

    static inline void sb_copy_from_disk(uint8_t *to, const uint8_t *from, size_t size)
    {
        if (sb_can_copy_wide(to, size))
            sb_wide_copy(to, from, size, 0);
        else
            memcpy(to, from, size);
    }

    /* Weakly ordered stores: the fence puts them before the completion that follows. */
    static inline void sb_copy_to_disk(uint8_t *to, const uint8_t *from, size_t size)
    {
        if (sb_can_copy_wide(to, size)) {
            sb_wide_copy(to, from, size, 1);
            _mm_sfence();
        } else {
            memcpy(to, from, size);
        }
    }
    #else
    #define sb_copy_from_disk memcpy
    #define sb_copy_to_disk memcpy
    #endif
    """
    void copy_from_disk "sb_copy_from_disk"(void *to, const uint8_t *source, size_t size) noexcept nogil
    void copy_to_disk "sb_copy_to_disk"(uint8_t *to, const void *source, size_t size) noexcept nogil
