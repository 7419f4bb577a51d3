"""What a power failure can leave of a recorded disk.

A namespace served with `record=LOG` (block/record.pyx) logs every change. From the log this makes
the disks that a power failure at any moment could have left behind:

    recording = Recording.open("disk.log")
    for state in CrashStates(recording, seed=1).sample(100):
        with state.image("crashed.img", base="before.img"):
            ...  # mount it, check it

Imports neither the device nor the driver.
"""

from shadowbell.crash.recording import Change, Flush, Recording, RecordingError
from shadowbell.crash.states import CrashStates, Device, Granularity, State

__all__ = [
    "Change",
    "CrashStates",
    "Device",
    "Flush",
    "Granularity",
    "Recording",
    "RecordingError",
    "State",
]
