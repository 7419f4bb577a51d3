"""A userspace NVMe host driver over vfio-user: the embedded guest of demo, bench and tests.

    with Host.connect("/run/shadowbell/disk.sock") as host:
        queue = host.create_queue_pair(128)
        queue.write(1, 0, bytes(4096))
        stats = run_load(host, [queue], LoadSpec(pattern="randread", depth=32), seconds=1)

Works with any vfio-user NVMe server. Shares nothing with the device side but the specification
package. Not done: fused commands, metadata, several memory arenas, reconnecting.
"""

from shadowbell.driver.admin import Admin, Event
from shadowbell.driver.client import Client
from shadowbell.driver.host import Doorbells, Host, Namespace
from shadowbell.driver.hostqueue import DeviceGone, ProtocolError
from shadowbell.driver.load import Load, LoadSpec, LoadStats, Pattern, run_load
from shadowbell.driver.memory import Arena, Buffer
from shadowbell.driver.queue_pair import CommandError, Completion, QueuePair
from shadowbell.driver.registers import ControllerFailed
from shadowbell.driver.verifier import Verifier
from shadowbell.driver.wire import WireError

connect = Host.connect

__all__ = [
    "Admin",
    "Arena",
    "Buffer",
    "Client",
    "CommandError",
    "Completion",
    "ControllerFailed",
    "DeviceGone",
    "Doorbells",
    "Event",
    "Host",
    "Load",
    "LoadSpec",
    "LoadStats",
    "Namespace",
    "Pattern",
    "ProtocolError",
    "QueuePair",
    "Verifier",
    "WireError",
    "connect",
    "run_load",
]
