"""Identity of the device.

The PCI identifiers are not registered with the PCI-SIG: no driver or quirk table knows them, so a
guest binds by class code (01 08 02). They spell "NV". Change them in this one place.
"""

PCI_VENDOR_ID = 0x4E56
PCI_DEVICE_ID = 0x0001
PCI_SUBSYSTEM_VENDOR_ID = PCI_VENDOR_ID
PCI_SUBSYSTEM_ID = PCI_DEVICE_ID

PCI_CLASS_CODE = 0x010802
"""Mass storage, non-volatile memory, NVM Express I/O controller (PCIe Transport 1.0, 3.2.1)."""

NQN_PREFIX = "nqn.2026-11.io.shadowbell:"
"""The subsystem NQN is this prefix and the serial number."""
