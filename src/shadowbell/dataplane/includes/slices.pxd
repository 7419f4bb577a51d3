# The scheduler's time slices, which Python has no call for.

cdef extern from *:
    """
    #include <errno.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* As in linux/sched/types.h, which can't be included beside older C libraries' sched.h. */
    struct sb_sched_attr {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    };

    /* Have the calling thread, of a fair policy, ask for slices of so many nanoseconds; 0 or -errno.
       Linux before 6.12 does without. */
    static inline int sb_ask_slice(uint64_t ns)
    {
        struct sb_sched_attr attr;
        memset(&attr, 0, sizeof attr);
        if (syscall(__NR_sched_getattr, 0, &attr, sizeof attr, 0) < 0)
            return -errno;
        if (attr.policy != 0 && attr.policy != 3)  /* SCHED_OTHER, SCHED_BATCH */
            return -EINVAL;
        attr.size = sizeof attr;
        attr.runtime = ns;
        return syscall(__NR_sched_setattr, 0, &attr, 0) < 0 ? -errno : 0;
    }
    """
    int ask_slice "sb_ask_slice"(unsigned long long ns) nogil
