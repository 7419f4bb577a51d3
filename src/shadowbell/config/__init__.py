"""What to serve: the configuration, from a namespace specification, Python or a TOML file.

Every mistake is a `UserError` of one line. The structures check themselves, so that a configuration
made in Python is held to the same rules as one that was typed.
"""

from .kinds import KINDS, MAX_NAMESPACES, MAX_SIZE, MAX_SOCKET_PATH, SIZED_KINDS
from .sizes import parse_poll_max, parse_size
from .structures import ControllerConfig, NamespaceConfig, ServerConfig
from .text import parse_namespace
from .toml import load

__all__ = [
    "KINDS",
    "MAX_NAMESPACES",
    "MAX_SIZE",
    "MAX_SOCKET_PATH",
    "SIZED_KINDS",
    "ControllerConfig",
    "NamespaceConfig",
    "ServerConfig",
    "load",
    "parse_namespace",
    "parse_poll_max",
    "parse_size",
]
