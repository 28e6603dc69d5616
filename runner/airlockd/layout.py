"""What is mounted where in a sandbox, and in which order. Root calls it with what the host asks for in `configure`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

KINDS = ("share", "cache", "bind", "file", "mask")
"""In the order in which they are mounted at one and the same place: what hides comes last."""

_PARTS = {"cache": 2, "bind": 1}
"""Of a directory of the disk."""


class Place(NamedTuple):
    """One mount: an absolute target in the sandbox, and what `kind` needs besides. `number` counts what was asked."""

    number: int
    kind: str
    target: str
    read_only: bool
    tag: str
    directory: str
    file: int = -1
    virtiofs: bool = False


class PlaceError(ValueError):
    """Something cannot be put at its place."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place


def arrange(
    asked: Sequence[Mapping[str, Any]], home: str, real: Callable[[str], str] = lambda path: path
) -> list[Place]:
    """The places, outer ones first, so that each finds what it lies in already mounted. `~` is `home`.

    `real` gives the path without symlinks: /lib/x lies in /usr/lib. Raises ValueError and KeyError for what no host
    asks.
    """

    def depth(place: Place) -> tuple[int, int]:
        return real(place.target).count("/"), KINDS.index(place.kind)

    return sorted((_place(number, each, home) for number, each in enumerate(asked)), key=depth)


def expand(path: str, home: str) -> str:
    """The path with a leading `~` as `home`."""
    return f"{home.rstrip('/')}{path[1:]}" if path == "~" or path.startswith("~/") else path


def _place(number: int, asked: Mapping[str, Any], home: str) -> Place:
    kind, target = str(asked["kind"]), expand(str(asked["target"]), home)
    parts = target.split("/")
    if kind not in KINDS or parts[0] or len(parts) < 2 or not all(parts[1:]) or {".", ".."} & set(parts):
        raise ValueError(f"bad place {target!r}")
    directory = str(asked.get("directory", ""))
    parts = directory.split("/")
    if kind in ("cache", "bind") and not (
        all(part.strip(".") for part in parts) and len(parts) == _PARTS[kind]
    ):
        raise ValueError(f"bad directory {directory!r}")
    file = int(asked["file"]) if kind == "file" else -1
    return Place(
        number, kind, target, bool(asked.get("read_only")), str(asked.get("tag", "")), directory, file,
        asked.get("filesystem") == "virtiofs",
    )  # fmt: skip
