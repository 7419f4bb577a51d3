"""Experiments on real KVM with a few bytes of guest code: `shadowbell lab`."""

from shadowbell.lab.show import run

__all__ = ["run"]
