cdef int count_live(const char *kind, int change) except -1
