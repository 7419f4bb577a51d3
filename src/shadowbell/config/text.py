"""A namespace as one word of the command line."""

import os
from typing import Any, cast

from shadowbell.config.kinds import (
    EXAMPLES,
    KINDS,
    NBD_SCHEMES,
    SIZED_KINDS,
    SUFFIXES,
    WEB_KINDS,
    Kind,
    Lba,
)
from shadowbell.config.sizes import parse_size
from shadowbell.config.structures import NamespaceConfig
from shadowbell.errors import UserError
from shadowbell.limits import NAMES, parse_limit


def parse_namespace(spec: str) -> NamespaceConfig:
    """Read `[KIND:]PATH|SIZE[,lba=512|4096][,ro][,timeout=S][,key=FILE][,record=LOG]`
    or a URI.

    A comma within a path is written `,,`. Without KIND the text is the path of an image, whose
    format its name tells (SUFFIXES; else it is raw), or of a block device. Raises UserError.
    """
    head, *options = (part.replace("\0", ",") for part in _split(spec))
    kind, colon, target = head.partition(":")
    if not colon or "/" in kind:
        kind, target = SUFFIXES.get(os.path.splitext(head)[1].lower(), "file"), head
    elif kind in NBD_SCHEMES and target.startswith("//"):
        kind, target = "nbd", head
    elif kind in WEB_KINDS:
        target = head
    elif kind not in KINDS:
        kinds = " ".join(f"{each}:" for each in KINDS)
        raise UserError(
            f"unknown kind {kind!r} in {spec!r}: use one of {kinds} "
            "(a path that contains a colon is written file:PATH)"
        )
    fields: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key in fields:
            raise UserError(f"{key} is given twice in {spec!r}: give it once")
        if key == "lba" and value in ("512", "4096"):
            fields[key] = int(value)
        elif key == "lba":
            raise UserError(f"bad lba {value!r} in {spec!r}: use lba=512 or lba=4096")
        elif key == "ro" and not equals:
            fields[key] = True
        elif key == "timeout":
            try:
                fields[key] = float(value)
            except ValueError:
                raise UserError(f"bad timeout {value!r} in {spec!r}: give seconds") from None
        elif key == "record" or (key == "key" and value):
            fields[key] = value
        elif key in NAMES and equals:
            fields[key] = parse_limit(key, value)
        else:
            raise UserError(
                f"unknown option {option!r} in {spec!r}: use lba=512, lba=4096, ro, iops=, bps=, "
                "burst=, timeout=SECONDS, key=FILE or record=LOG (a comma within a path is written "
                "twice)"
            )
    sized = kind in SIZED_KINDS
    if not target:
        missing = f"its size: write {kind}:1G" if sized else EXAMPLES[kind]
        raise UserError(f"{spec!r} lacks {missing}")
    return NamespaceConfig(
        kind=cast(Kind, kind),
        path=None if sized else target,
        size=parse_size(target) if sized else None,
        lba=cast(Lba, fields.get("lba", 512)),
        read_only="ro" in fields,
        timeout=fields.get("timeout", 0),
        key=fields.get("key"),
        record=fields.get("record"),
        **{name: fields[name] for name in NAMES if name in fields},
    )


def _split(spec: str) -> list[str]:
    if "\0" in spec:
        raise UserError(f"{spec!r} contains a NUL character: leave it out")
    return spec.replace(",,", "\0").split(",")
