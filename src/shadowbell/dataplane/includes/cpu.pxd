# What C11 and the processor give us that Cython has no words for: ordered loads and stores,
# fences, prefetch and the cycle counter.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    #if defined(__x86_64__)
    #include <x86intrin.h>
    #endif

    static inline uint32_t sb_load32(const volatile void *p)
    { return __atomic_load_n((const volatile uint32_t *)p, __ATOMIC_ACQUIRE); }
    static inline void sb_store32(volatile void *p, uint32_t v)
    { __atomic_store_n((volatile uint32_t *)p, v, __ATOMIC_RELEASE); }
    static inline int sb_swap_if32(volatile void *p, uint32_t old, uint32_t v)
    { return __atomic_compare_exchange_n((volatile uint32_t *)p, &old, v, 0,
                                         __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
    static inline int sb_swap_if64(volatile void *p, uint64_t old, uint64_t v)
    { return __atomic_compare_exchange_n((volatile uint64_t *)p, &old, v, 0,
                                         __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
    static inline uint32_t sb_exchange32(volatile void *p, uint32_t v)
    { return __atomic_exchange_n((volatile uint32_t *)p, v, __ATOMIC_SEQ_CST); }
    static inline void sb_add32(volatile void *p, uint32_t v)
    { __atomic_fetch_add((volatile uint32_t *)p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t sb_count32(volatile void *p)
    { return __atomic_add_fetch((volatile uint32_t *)p, 1, __ATOMIC_SEQ_CST); }
    static inline uint64_t sb_load64(const volatile void *p)
    { return __atomic_load_n((const volatile uint64_t *)p, __ATOMIC_ACQUIRE); }
    static inline void sb_store64(volatile void *p, uint64_t v)
    { __atomic_store_n((volatile uint64_t *)p, v, __ATOMIC_RELEASE); }
    static inline void *sb_load_ptr(const void *p)
    { return __atomic_load_n((void *const *)p, __ATOMIC_ACQUIRE); }
    static inline void sb_store_ptr(void *p, void *v)
    { __atomic_store_n((void **)p, v, __ATOMIC_RELEASE); }
    static inline uint64_t sb_add64(volatile void *p, uint64_t v)
    { return __atomic_fetch_add((volatile uint64_t *)p, v, __ATOMIC_SEQ_CST); }
    static inline void *sb_exchange_ptr(void *p, void *v)
    { return __atomic_exchange_n((void **)p, v, __ATOMIC_SEQ_CST); }
    static inline int sb_swap_if_ptr(void *p, void *old, void *v)
    { return __atomic_compare_exchange_n((void **)p, &old, v, 0,
                                         __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
    static inline void sb_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    /* A function that does nothing but prefetch has no effect to GCC, and its calls are dropped:
       the empty asm is one. */
    static inline void sb_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); __asm__ volatile(""); }
    static inline uint64_t sb_clock_ns(void)
    { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
      return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec; }
    #if defined(__x86_64__)
    static inline uint64_t sb_ticks(void) { return __rdtsc(); }
    static inline void sb_relax(void) { _mm_pause(); }
    #else
    static inline uint64_t sb_ticks(void) { return sb_clock_ns(); }
    static inline void sb_relax(void) { __asm__ __volatile__("" ::: "memory"); }
    #endif
    static inline uint32_t sb_log2(uint64_t v) { return 63u - (uint32_t)__builtin_clzll(v | 1); }
    #define sb_likely(x) __builtin_expect(!!(x), 1)
    #define sb_unlikely(x) __builtin_expect(!!(x), 0)
    """
    uint32_t load32 "sb_load32"(const void *p) noexcept nogil
    void store32 "sb_store32"(void *p, uint32_t value) noexcept nogil
    bint swap_if32 "sb_swap_if32"(void *p, uint32_t old, uint32_t value) noexcept nogil
    bint swap_if64 "sb_swap_if64"(void *p, uint64_t old, uint64_t value) noexcept nogil
    uint32_t exchange32 "sb_exchange32"(void *p, uint32_t value) noexcept nogil
    void add32 "sb_add32"(void *p, uint32_t value) noexcept nogil
    uint32_t count32 "sb_count32"(void *p) noexcept nogil  # adds 1, returns what is there then
    uint64_t load64 "sb_load64"(const void *p) noexcept nogil
    void store64 "sb_store64"(void *p, uint64_t value) noexcept nogil
    void *load_ptr "sb_load_ptr"(const void *p) noexcept nogil
    void store_ptr "sb_store_ptr"(void *p, void *value) noexcept nogil
    uint64_t add64 "sb_add64"(void *p, uint64_t value) noexcept nogil  # returns what was there
    void *exchange_ptr "sb_exchange_ptr"(void *p, void *value) noexcept nogil
    bint swap_if_ptr "sb_swap_if_ptr"(void *p, void *old, void *value) noexcept nogil
    void fence "sb_fence"() noexcept nogil
    void prefetch "sb_prefetch"(const void *p) noexcept nogil
    uint64_t clock_ns "sb_clock_ns"() noexcept nogil
    uint64_t ticks "sb_ticks"() noexcept nogil
    void relax "sb_relax"() noexcept nogil
    uint32_t log2 "sb_log2"(uint64_t value) noexcept nogil
    bint likely "sb_likely"(bint x) noexcept nogil
    bint unlikely "sb_unlikely"(bint x) noexcept nogil
