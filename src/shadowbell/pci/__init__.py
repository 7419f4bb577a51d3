"""The PCI function that carries the controller: configuration space and BAR0."""

from shadowbell.pci.function import PciFunction, vector_count

__all__ = ["PciFunction", "vector_count"]
