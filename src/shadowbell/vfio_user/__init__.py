"""The vfio-user protocol, server side: bytes in, bytes out."""

from shadowbell.vfio_user.protocol import ProtocolError
from shadowbell.vfio_user.session import Reply, Session

__all__ = ["ProtocolError", "Reply", "Session"]
