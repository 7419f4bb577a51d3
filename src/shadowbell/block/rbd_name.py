"""What `rbd:POOL/IMAGE@SNAPSHOT?OPTIONS` says."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote

from shadowbell.errors import UserError

FORM = "rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT][?OPTION=VALUE&...]"


@dataclass(frozen=True)
class RbdName:
    """An image and how to reach it. Times are in seconds, the first two whole ones.

    `connect`: how long opening may wait for the cluster. `timeout`: after how long a command that
    the cluster doesn't answer ends with "not ready", for the host to try again; 0 for never.
    `wait`: how long to wait for another server's lock; with `takeover` the server is asked to hand
    over, and shut out when it hasn't by then. `ceph`: any options of Ceph's own.
    """

    pool: str
    namespace: str
    image: str
    snapshot: str | None
    conf: str | None = None
    id: str = "admin"
    connect: int = 10
    timeout: int = 20
    wait: float = 0
    takeover: bool = False
    lock: bool = True
    ceph: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The image, and nothing of how it is reached."""
        parts = (self.pool, self.namespace, self.image)
        return "/".join(filter(None, parts)) + (f"@{self.snapshot}" if self.snapshot else "")


def parse_rbd(text: str) -> RbdName:
    """Read what follows "rbd:". Values are percent-decoded. Raises UserError."""
    where, _, query = text.partition("?")
    path, at, snapshot = where.partition("@")
    parts = path.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts) or (at and not snapshot):
        raise UserError(f"{text!r} names no image: write {FORM}")
    own: dict[str, str] = {}
    ceph: dict[str, str] = {}
    for option in filter(None, query.split("&")):
        key, equals, value = option.partition("=")
        chosen = own if key in _OWN else ceph
        if key in chosen:
            raise UserError(f"{key} is given twice in {text!r}: give it once")
        if not equals and key != "takeover":
            raise UserError(f"option {key!r} of {text!r} lacks its value: write {key}=VALUE")
        chosen[key] = unquote(value)
    takeover = own.get("takeover", "no")
    lock = own.get("lock", "exclusive")
    if takeover not in ("", "no", "yes"):
        raise UserError(f"bad takeover {takeover!r}: use takeover or takeover=no")
    if lock not in ("exclusive", "none"):
        raise UserError(f"bad lock {lock!r}: use lock=exclusive or lock=none")
    take = takeover != "no"
    return RbdName(
        pool=parts[0],
        namespace=parts[1] if len(parts) == 3 else "",
        image=parts[-1],
        snapshot=snapshot or None,
        conf=own.get("conf"),
        id=own.get("id", "admin"),
        connect=int(_seconds(own, "connect", 10, least=1)),
        timeout=int(_seconds(own, "timeout", 20)),
        wait=_seconds(own, "wait", 10 if take else 0),
        takeover=take,
        lock=lock == "exclusive",
        ceph=ceph,
    )


_OWN = frozenset(("conf", "id", "connect", "timeout", "wait", "takeover", "lock"))


def _seconds(given: dict[str, str], key: str, default: float, *, least: float = 0) -> float:
    text = given.get(key)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not least <= seconds <= 86400:
        raise UserError(f"bad {key} {text!r}: give {least:g} to 86400 seconds")
    return seconds
