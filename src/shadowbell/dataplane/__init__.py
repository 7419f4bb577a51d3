"""The compiled I/O path: engines, IOThreads, doorbells, DMA."""

from shadowbell.dataplane.dma import DmaError
from shadowbell.dataplane.engine import Engine
from shadowbell.dataplane.iothread import IOThread
from shadowbell.dataplane.ledger import QueueLedger
from shadowbell.dataplane.live import live_objects
from shadowbell.dataplane.notices import Event, TransferError
from shadowbell.dataplane.pins import Pins

__all__ = [
    "DmaError",
    "Engine",
    "Event",
    "IOThread",
    "Pins",
    "QueueLedger",
    "TransferError",
    "live_objects",
]
