"""What tests of containers share: an image with Docker and Podman, and an image for them without any registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# The shipped recipes with what images can be made of. Both in one, because building a root takes more than a minute.
RECIPE = """
[recipe]
name = "containers-test"
extends = ["podman", "docker"]
[rootfs]
packages = ["busybox-static", "libcap2-bin"]
"""
BOX = """
mkdir -p ~/box/bin ~/box/tmp
cp /bin/busybox ~/box/bin/
for name in sh cat cp dd grep httpd id mkdir mount seq sha256sum sleep true unshare wget; do
    ln -sf busybox ~/box/bin/$name
done
"""
IMPORT = f"{BOX} tar -C ~/box -c . | docker import - box"


def write_project(
    project: Path, text: str, image: str = "./containers.toml", vm: str = "harden = true"
) -> None:
    """Write airlock.toml with small `[vm]` settings and `vm` in the same table, then `text`; and the recipe."""
    (project / "containers.toml").write_text(RECIPE)
    (project / "airlock.toml").write_text(f'[vm]\nimage = "{image}"\ncpus = 2\n{vm}\n{text}\n')
