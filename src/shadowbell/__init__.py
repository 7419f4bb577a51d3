"""shadowbell: a userspace NVMe controller for virtual machines."""

__version__ = "0.1.0"
