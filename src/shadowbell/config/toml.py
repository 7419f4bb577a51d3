"""A configuration in a TOML file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from shadowbell.config.kinds import WEB_KINDS
from shadowbell.config.sizes import parse_size
from shadowbell.config.structures import ControllerConfig, NamespaceConfig, ServerConfig
from shadowbell.config.text import parse_namespace
from shadowbell.errors import UserError


def load(path: str | os.PathLike[str]) -> ServerConfig:
    """Read a TOML file; relative paths in it start from its folder. Raises UserError.

    A controller's `namespace` is a list of specifications (`parse_namespace`) and of tables with
    the fields of `NamespaceConfig`, where `size` and `bps` may be text (`parse_size`).
    """
    import tomllib

    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}: check the path") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise UserError(f"{path} is no valid TOML: {_one_line(error)}") from None
    folder = Path(path).absolute().parent
    try:
        controllers = tables.get("controller")
        if not isinstance(controllers, list):
            raise UserError("nothing to serve: add a [[controller]] table")
        tables["controller"] = tuple(
            _controller(table, f"controller {number}", folder)
            for number, table in enumerate(controllers, 1)
        )
        return _convert(tables, ServerConfig, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


T = TypeVar("T", bound=msgspec.Struct)


def _controller(table: object, where: str, folder: Path) -> ControllerConfig:
    if not isinstance(table, dict):
        raise UserError(f"{where} is no table: write it as [[controller]]")
    entries = table.get("namespace", [])
    if not isinstance(entries, list):
        entries = [entries]
    table["namespace"] = tuple(
        _namespace(entry, f"{where}, namespace {number}", folder)
        for number, entry in enumerate(entries, 1)
    )
    for key in ("socket", "control"):
        if isinstance(table.get(key), str):
            table[key] = _from_folder(table[key], folder)
    return _convert(table, ControllerConfig, where)


def _namespace(entry: object, where: str, folder: Path) -> NamespaceConfig:
    try:
        if isinstance(entry, str):
            namespace = parse_namespace(entry)
        elif isinstance(entry, dict):
            for name in ("size", "bps"):
                if isinstance(entry.get(name), str):
                    entry[name] = parse_size(entry[name])
            namespace = _convert(entry, NamespaceConfig, "")
        else:
            raise UserError("is neither text nor a table: write it as 'file:/path' or a table")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    paths = {
        name: _from_folder(path, folder)
        for name in ("path", "key", "record")
        if (path := getattr(namespace, name)) is not None
        and not (name == "path" and (namespace.kind in ("nbd", "rbd", *WEB_KINDS)))
    }
    return msgspec.structs.replace(namespace, **paths)


def _convert(table: Mapping[str, object], kind: type[T], where: str) -> T:
    prefix = f"{where}: " if where else ""
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in table:
        if key not in known:
            raise UserError(f"{prefix}unknown key {key!r}: use {', '.join(known)}")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{prefix}{_one_line(error)}") from None
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None


def _from_folder(path: str, folder: Path) -> str:
    return str(folder / os.path.expanduser(path)) if path else path


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
