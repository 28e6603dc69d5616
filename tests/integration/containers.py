"""What tests of containers share: projects with the recipes that ship, and an image for them without any registry."""

from __future__ import annotations

import tarfile
from pathlib import Path

from airlock_builder.build import build, plan
from airlock_store.store import Store

EXAMPLE = Path(__file__).parents[2] / "examples" / "docker"
BOX = """
mkdir -p ~/box/bin ~/box/tmp
cp $(command -v busybox) ~/box/bin/
for name in sh cat cp dd grep httpd id mkdir mount seq sha256sum sleep true unshare wget; do
    ln -sf busybox ~/box/bin/$name
done
"""
IMPORT = f"{BOX} tar -C ~/box -c . | docker import - box"


def write_project(project: Path, text: str, image: str, vm: str = "harden = true") -> None:
    """Write airlock.toml with small `[vm]` settings and `vm` in the same table, then `text`.

    Of the recipes that ship only the example's has a busybox to make images of. Where `image` is another, the sandbox
    gets that one as a file.
    """
    if Path(image).parent != EXAMPLE:
        extract_busybox(project)
        text += (
            '\n[mounts.busybox]\nsource = "busybox"\ntarget = "/usr/local/bin/busybox"\nread_only = true\n'
        )
    (project / "airlock.toml").write_text(f'[vm]\nimage = "{image}"\ncpus = 2\n{vm}\n{text}\n')


def extract_busybox(directory: Path) -> None:
    """Put the busybox of the example's image into a directory."""
    store, steps = Store.open(), plan(str(EXAMPLE / "sandbox.toml"))
    build(steps, store)
    (rootfs,) = (store.find(step.key, step.name) for step in steps.steps if step.kind == "rootfs")
    assert rootfs is not None
    with tarfile.open(rootfs.path / "rootfs.tar") as tree:
        program = tree.extractfile("./usr/bin/busybox")
        assert program is not None
        path = directory / "busybox"
        path.write_bytes(program.read())
        path.chmod(0o755)
