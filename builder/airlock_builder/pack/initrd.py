"""Step `initrd`: airlockd with a private Python, its libraries, the ext4 tools and the kernel's modules, as a cpio.

Every byte costs time at boot, so it holds what is reached from airlockd and nothing else.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_builder import tools
from airlock_builder.kernel.output import read_promised
from airlock_builder.pack import cpio
from airlock_builder.pack.airlockd import airlockd_sources, digest_sources
from airlock_builder.pack.cpio import Entry
from airlock_builder.pack.toolbox import LOADERS, Toolbox
from airlock_store.errors import BuildError
from airlock_store.image import encode_promises

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airlock_builder.step import Work

IMAGE = "initrd"

INIT = """\
#!/usr/bin/python3 -ISB
from airlockd.supervisor import main
main()
"""

_PROGRAMS = ("usr/sbin/mke2fs", "usr/sbin/e2fsck", "usr/sbin/resize2fs")
_INTERPRETERS = {"x86_64": "lib64", "aarch64": "lib"}
"""Where programs expect their loader: the directory in PT_INTERP."""
_MOUNT_POINTS = ("proc", "sys", "dev", "run", "tmp", "sandbox", "image", "disk", "root")
# Loaded by the C library when a thread ends, which no list of dependencies shows.
_HIDDEN_LIBRARIES = ("libgcc_s.so.1",)


def build(work: Work) -> None:
    """Make the initrd. Raises BuildError when airlockd's sources are not those of the plan any more."""
    toolbox = Toolbox(work.inputs["toolbox"].path, work.parameters["arch"])
    work.progress(None, "compiling airlockd")
    extensions = _compile(work, toolbox)
    library = Path("usr/lib") / work.parameters["python"]
    work.progress(None, "packing")
    entries = [
        Entry("init", 0o100755, INIT.encode()),
        *(Entry.directory(name) for name in _MOUNT_POINTS),
        *_tree(work.scratch / "compiled", library),
        *_modules(work.inputs["kernel"] / "modules"),
        Entry.file("lib/modules/promises", encode_promises(read_promised(work.inputs["kernel"].path))),
        Entry.file("etc/mke2fs.conf", (toolbox.root / "etc/mke2fs.conf").read_bytes()),
        *_programs(work, toolbox, extensions),
    ]
    with (work.output / IMAGE).open("wb") as file:
        cpio.write(entries, file)


def _compile(work: Work, toolbox: Toolbox) -> list[str]:
    """Compile airlockd and what it imports into `compiled`; returns the extension modules, below the toolbox's root."""
    sources = work.scratch / "source" / "airlockd"
    root, files = airlockd_sources()
    for file in files:
        (sources / file).parent.mkdir(parents=True, exist_ok=True)
        (sources / file).write_bytes((root / file).read_bytes())
    if digest_sources(sources, files) != work.parameters["airlockd"]:
        raise BuildError("airlockd changed while it was being built", hint="Build again.")
    python = work.parameters["python"]
    listing = work.scratch / "modules.json"
    toolbox.run(
        f"usr/bin/{python}",
        *("-S", "-s", "-B", "-P"),
        Path(__file__).with_name("guest_python.py"),
        toolbox.root / "usr/lib" / python,
        sources,
        work.scratch / "compiled",
        listing,
        log=work.log,
        env=tools.environment(PYTHONHOME=str(toolbox.root / "usr"), PYTHONHASHSEED="0"),
        cwd=work.scratch,
    )
    return [str(Path(name).relative_to(toolbox.root)) for name in json.loads(listing.read_bytes())]


def _tree(root: Path, target: Path) -> Iterator[Entry]:
    for path in root.rglob("*"):
        if path.is_file():
            yield Entry.file((target / path.relative_to(root)).as_posix(), path.read_bytes())


def _modules(directory: Path) -> Iterator[Entry]:
    for path in directory.iterdir():
        yield Entry.file(f"lib/modules/{path.name}", path.read_bytes())


def _programs(work: Work, toolbox: Toolbox, extensions: Iterable[str]) -> Iterator[Entry]:
    """Programs and extension modules, with the libraries that they load, and the loader."""
    python = f"usr/bin/{work.parameters['python']}"
    libraries = {toolbox.libraries / name for name in _HIDDEN_LIBRARIES}
    for name in (python, *_PROGRAMS, *extensions):
        path = toolbox.root / name
        yield Entry.file("usr/bin/python3" if name == python else name, path.read_bytes(), executable=True)
        libraries |= _libraries(toolbox, path)
    for path in libraries:
        name = path.relative_to(toolbox.root).as_posix()
        yield Entry.file(name, path.read_bytes(), executable=True)
    arch = work.parameters["arch"]
    yield Entry.file(f"{_INTERPRETERS[arch]}/{LOADERS[arch]}", toolbox.loader.read_bytes(), executable=True)


def _libraries(toolbox: Toolbox, program: Path) -> set[Path]:
    """The shared libraries that `program` loads. Raises BuildError for one that the toolbox lacks."""
    listing = toolbox.needed_libraries(program)
    if missing := re.findall(r"(\S+) => not found", listing):
        raise BuildError(f"the toolbox lacks {', '.join(missing)}, which {program.name} needs")
    found = {Path(name) for name in re.findall(r"=> (/\S.*) \(0x[0-9a-f]+\)", listing)}
    return {path for path in found if path.name != toolbox.loader.name}
