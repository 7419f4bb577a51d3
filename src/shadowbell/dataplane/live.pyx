"""How many of our objects are alive: a leak shows as a count that doesn't come back."""

import threading

_counts: dict[str, int] = {}
_lock = threading.Lock()


cdef int count_live(const char *kind, int change) except -1:
    name = kind.decode()
    with _lock:
        _counts[name] = _counts.get(name, 0) + change
    return 0


def live_objects():
    """Return the number of live engines, IOThreads, queues, mappings and back ends by kind."""
    with _lock:
        return dict(_counts)
