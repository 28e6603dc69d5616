"""Where in a share a path is, by the table of mounts of a process, which may be anybody's."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlockd.mountinfo import Mount, locate, parse

DEVICE = os.makedev(0, 31)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/project/src", (DEVICE, b"src")),
        (b"/project/src/a b", (DEVICE, b"src/a b")),
        (b"/project", (DEVICE, b"")),
        (b"/projects/src", None),
        (b"/etc/hosts", None),
        (b"/project/inner/x", (1, b"x")),
        (b"/app/x", (DEVICE, b"src/x")),
        (b"/app", (DEVICE, b"src")),
        # What is mounted over another hides it.
        (b"/twice/x", (2, b"x")),
    ],
)
def test_a_path_is_found_by_what_is_mounted(path: bytes, found: tuple[int, bytes] | None) -> None:
    mounts = [
        Mount(DEVICE, b"/", b"/project"),
        Mount(1, b"/", b"/project/inner"),
        Mount(DEVICE, b"/src", b"/app"),
        Mount(DEVICE, b"/", b"/twice"),
        Mount(2, b"/", b"/twice"),
    ]
    assert locate(mounts, path) == found


def test_a_share_may_be_the_root() -> None:
    assert locate([Mount(DEVICE, b"/", b"/")], b"/src/x") == (DEVICE, b"src/x")


PATHS = st.binary(min_size=1, max_size=30).map(
    lambda name: b"/" + name.replace(b"\0", b"").replace(b"/", b"")
)


@given(st.lists(st.tuples(st.sampled_from([DEVICE, 5]), PATHS, PATHS), max_size=5), st.binary(max_size=20))
def test_mounts_are_read_as_the_kernel_writes_them(
    mounts: list[tuple[int, bytes, bytes]], torn: bytes
) -> None:
    def escaped(path: bytes) -> bytes:
        for byte in b"\\ \t\n#":
            path = path.replace(bytes([byte]), b"\\%03o" % byte)
        return path

    lines = [
        b"36 35 %d:%d %s %s rw,noatime master:1 - 9p project rw\n"
        % (os.major(device), os.minor(device), escaped(root), escaped(target))
        for device, root, target in mounts
    ]
    table = b"".join(lines) + torn.replace(b"\n", b"")
    assert parse(table, {DEVICE}) == [
        Mount(device, root, target) for device, root, target in mounts if device == DEVICE
    ]
