"""Trees with odd names, as the real tar writes them and the real mke2fs reads them."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from filesystems import toolbox_of

from airlock_builder.pack import disk
from airlock_builder.rootfs.mmdebstrap import EPOCH, TAR
from airlock_store.errors import Location
from airlock_store.paths import StorePath

if TYPE_CHECKING:
    from pathlib import Path

    from airlock_store.store import Store

pytestmark = pytest.mark.usefixtures("base_image")


def test_a_name_that_is_no_text_is_a_name(store: Store, tmp_path: Path) -> None:
    """To Linux it is any bytes, and so it is to what a recipe runs."""
    tree, rootfs, output = (tmp_path / name for name in ("tree", "rootfs", "output"))
    for directory in (tree, rootfs, output, tree / "plain"):
        directory.mkdir()
    place = os.fsencode(tree)
    os.mkdir(place + b"/dir\xff")
    for name in (b"/dir\xff/\xe4", b"/long\xfe" + b"x" * 150, "/ä".encode()):
        with open(place + name, "wb") as file:
            file.write(name[1:])
    os.link(place + b"/dir\xff/\xe4", place + b"/hard")
    os.symlink(b"dir\xff/\xe4", place + b"/soft")
    # As mmdebstrap calls it.
    subprocess.run(
        [
            "tar",
            "-C",
            tree,
            "--format=pax",
            "--pax-option=delete=atime,delete=ctime",
            "-cf",
            rootfs / TAR,
            ".",
        ],
        check=True,
    )
    (rootfs / EPOCH).write_text("1700000000\n")
    toolbox = toolbox_of(store)
    work: Any = SimpleNamespace(
        inputs={
            "rootfs": StorePath(rootfs, "0" * 32, "r"),
            "toolbox": StorePath(toolbox.root, "0" * 32, "t"),
        },
        parameters={"size": None, "arch": "x86_64"},
        step=SimpleNamespace(payload={"size_place": Location(tmp_path / "recipe.toml")}),
        output=output,
        scratch=tmp_path,
        log=print,
        progress=lambda _fraction, _text: None,
    )
    disk.build(work)
    image, back = output / disk.IMAGE, tmp_path / "back"
    toolbox.run("usr/sbin/e2fsck", "-f", "-n", image, log=print)
    back.mkdir()
    toolbox.run("usr/sbin/debugfs", "-R", f"rdump / {back}", image, log=print)
    (back / "lost+found").rmdir()

    def found(root: Path) -> dict[Path, object]:
        return {
            path.relative_to(root): path.readlink() if path.is_symlink() else path.read_bytes()
            for path in root.rglob("*")
            if path.is_symlink() or path.is_file()
        }

    assert found(back) == found(tree)
    assert len(found(tree)) == 5
