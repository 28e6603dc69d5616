"""An image: a store path that boots, and its `manifest.json`. Written by the builder, read by the runner.

Reading is on the way of every start, so it costs one small file and a few stat calls: no TOML, no hashing.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airlock_store.errors import StoreError
from airlock_store.settings import parse_user

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_T = TypeVar("_T")

MANIFEST = "manifest.json"
SCHEMA = 1
ARCHITECTURES = ("x86_64", "aarch64")
FORMATS = ("ext4",)

MAX_MANIFEST = 1 << 20
"""Bytes that a manifest may have: it is read into memory at every start."""
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_.-]{0,99}")


@dataclass(frozen=True, slots=True)
class VmDefaults:
    """What a recipe suggests for the machine; None where it says nothing. `memory` is in bytes."""

    memory: int | None = None
    cpus: int | None = None
    harden: bool | None = None
    command: tuple[str, ...] = ()
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A bootable store path. `rootfs_key` changes only if the bytes of the root filesystem may have changed.

    `brings` are tables of a project's config that the image comes with (`airlock_store.services`), as the recipe has
    them, unchecked. `kernel_options` are those that its kernel was proven to have, names without CONFIG_, with their
    exact values.
    """

    path: Path
    key: str
    name: str
    summary: str
    arch: str
    kernel: Path
    kernel_release: str
    initrd: Path
    rootfs: Path
    rootfs_format: str
    rootfs_key: str
    features: tuple[str, ...] = ()
    kernel_options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    vm: VmDefaults = VmDefaults()
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    brings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def load_image(path: Path) -> Image:
    """The image in the directory `path`. Raises StoreError when it is none, damaged, or made by a newer airlock."""
    try:
        with (path / MANIFEST).open("rb") as file:
            raw = file.read(MAX_MANIFEST)
        manifest = _Fields(json.loads(raw), path)
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not an image: {error}", hint=_HINT) from error
    if (schema := manifest.number("schema")) != SCHEMA:
        raise StoreError(
            f"{path}: image schema {schema} is not known", hint="Update airlock, or build the image anew."
        )
    vm = manifest.table("vm")
    return Image(
        path=path,
        key=manifest.text("key"),
        name=manifest.text("name"),
        summary=manifest.text("summary"),
        arch=manifest.one_of("arch", ARCHITECTURES),
        kernel=manifest.file("kernel"),
        kernel_release=manifest.text("kernel_release"),
        initrd=manifest.file("initrd"),
        rootfs=manifest.file("rootfs"),
        rootfs_format=manifest.one_of("rootfs_format", FORMATS),
        rootfs_key=manifest.text("rootfs_key"),
        features=manifest.texts("features"),
        # Images from before this was proven promise nothing.
        kernel_options=manifest.optional_table("kernel_options").all_texts(),
        vm=VmDefaults(
            memory=vm.optional(int, "memory"),
            cpus=vm.optional(int, "cpus"),
            harden=vm.optional(bool, "harden"),
            command=vm.texts("command"),
            user=vm.user("user"),
        ),
        env=manifest.table("env").all_texts(),
        brings=manifest.optional_table("brings").raw(),
    )


def encode_image(image: Image) -> bytes:
    """The bytes of `manifest.json` for `image`, whose files lie in its own directory."""
    document = {field.name: getattr(image, field.name) for field in fields(image)} | {
        "schema": SCHEMA,
        "kernel": image.kernel.name,
        "initrd": image.initrd.name,
        "rootfs": image.rootfs.name,
        "vm": asdict(image.vm),
        "env": dict(image.env),
        "kernel_options": dict(image.kernel_options),
        "brings": dict(image.brings),
    }
    del document["path"]
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def encode_promises(kernel_options: Mapping[str, str]) -> bytes:
    """The options as the initrd has them for airlockd to compare: `NAME=value` a line, sorted."""
    return "".join(f"{name}={value}\n" for name, value in sorted(kernel_options.items())).encode()


_HINT = "Remove it from the store and build it again."


class _Fields:
    """A JSON object whose fields are what they should be, or else a StoreError."""

    def __init__(self, fields: object, path: Path, where: str = "") -> None:
        self._path = path
        self._where = where
        self._fields: dict[str, Any] = fields if isinstance(fields, dict) else {}
        if not isinstance(fields, dict):
            self._wrong(where.rstrip("."), "an object")

    def text(self, name: str) -> str:
        value = self._fields.get(name)
        return value if isinstance(value, str) else self._wrong(name, "a string")

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._fields.get(name)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        return self._wrong(name, "a list of strings")

    def all_texts(self) -> Mapping[str, str]:
        return MappingProxyType({name: self.text(name) for name in self._fields})

    def raw(self) -> Mapping[str, Any]:
        """As it is, unchecked."""
        return MappingProxyType(self._fields)

    def number(self, name: str) -> int:
        value = self.optional(int, name)
        return self._wrong(name, "a number") if value is None else value

    def optional(self, kind: type[_T], name: str) -> _T | None:
        value = self._fields.get(name)
        if value is None or type(value) is kind:
            return value
        return self._wrong(name, f"{kind.__name__} or null")

    def user(self, name: str) -> str | None:
        value = self.optional(str, name)
        try:
            return value if value is None else parse_user(value)
        except ValueError:
            self._wrong(name, "a user's name or number")

    def one_of(self, name: str, known: tuple[str, ...]) -> str:
        value = self.text(name)
        return value if value in known else self._wrong(name, "one of " + ", ".join(known))

    def table(self, name: str) -> _Fields:
        return _Fields(self._fields.get(name), self._path, f"{self._where}{name}.")

    def optional_table(self, name: str) -> _Fields:
        return self.table(name) if name in self._fields else _Fields({}, self._path, f"{self._where}{name}.")

    def file(self, name: str) -> Path:
        value = self.text(name)
        path = self._path / value
        if not _FILE_NAME.fullmatch(value) or path.is_symlink() or not path.is_file():
            self._wrong(name, "the name of a file in the image")
        return path

    def _wrong(self, name: str, wanted: str) -> NoReturn:
        raise StoreError(f"{self._path / MANIFEST}: {self._where}{name} should be {wanted}", hint=_HINT)
