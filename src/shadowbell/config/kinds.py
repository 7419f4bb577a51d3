"""The kinds of namespaces, and the limits of a configuration."""

from typing import Literal

MAX_IO_QUEUES = 128
MAX_IOTHREADS = 64
MAX_NAMESPACES = 256  # of a controller: NN in Identify Controller
MAX_POLL_US = 1_000_000
MAX_SIZE = 2**63 - 1  # off_t
MAX_TIMEOUT = 86400  # seconds
MAX_SOCKET_PATH = 107  # sockaddr_un.sun_path less its NUL

IMAGE_KINDS = ("qcow2", "vmdk", "vhdx", "vpc", "vdi", "luks")
"""Image formats of QEMU's, which serves them to us; by its names for them."""
WEB_KINDS = ("http", "https")
NBD_SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock")
SIZED_KINDS = ("memory", "null")
KINDS = ("file", *SIZED_KINDS, "nbd", "rbd", *IMAGE_KINDS, *WEB_KINDS)
SUFFIXES = {
    ".qcow2": "qcow2", ".vmdk": "vmdk", ".vhdx": "vhdx", ".vhd": "vpc", ".vdi": "vdi",
    ".luks": "luks",
}  # fmt: skip
"""What a name without a KIND says. Only the name: a guest can write any header into a raw disk."""
EXAMPLES = {
    "file": "a path: file:/path/to/disk.img",
    "nbd": "a URI: nbd://host/export or nbd+unix:///export?socket=/path",
    "rbd": "an image: rbd:POOL/IMAGE",
    **{kind: f"a path: {kind}:/path/to/image" for kind in IMAGE_KINDS},
    **{kind: f"an address: {kind}://host/disk.img" for kind in WEB_KINDS},
}
RECORDED_KINDS = ("file", "memory")

Kind = Literal[
    "file", "memory", "null",
    "nbd", "rbd", "qcow2", "vmdk", "vhdx", "vpc", "vdi", "luks", "http", "https",
]  # fmt: skip
Lba = Literal[512, 4096]
PollMax = int | Literal["busy"]
