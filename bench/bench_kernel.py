"""Debian's kernel against one that is compiled: uptime at /init, start to READY, ELF or bzImage, sizes, compile time.

The boots alternate in one run, so that a busy machine slows all of them; ratios of medians are the result.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_builder.build import build, plan
from airlock_builder.kernel.compile import compile_kernel
from airlock_builder.kernel.source import unpack
from airlock_runner.machine.argv import Channels, MachineSpec, qemu_argv
from airlock_runner.machine.qemu import find_qemu, qemu_version
from airlock_store.image import Image, load_image
from airlock_store.store import Store, StorePath

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airlock_builder.plan import Plan

AIRLOCK = Path(sys.executable).with_name("airlock")
RESULTS = Path(__file__).parent / "results"
# Of the same name as `base`, to share its disk.
RECIPE = """\
[recipe]
name = "base"
extends = "base"
[kernel]
provider = "{provider}"
features = {features}
"""
MEMORY = 512 * 1024**2
INIT = """
#include <stdio.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>
int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    printf("INIT-AT %ld.%06ld\\n", (long)now.tv_sec, now.tv_nsec / 1000);
    fflush(stdout);
    return reboot(RB_POWER_OFF);
}
"""
UPTIME_GOAL = 0.5
"""Of the prebuilt kernel's guest uptime at /init, at most."""
SIZE_GOAL = 8 << 20
"""Bytes of the compiled bzImage, at most."""
FORMS = ("ELF", "bzImage")
"""The two forms of a kernel that QEMU boots; airlock boots the first, which must be the faster."""


def main() -> int:
    """Measure, print, write JSON; exit code 1 where a goal is missed, and none of them is about seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--features", default="sandbox", help="what both kernels have (default: sandbox)")
    parser.add_argument("--compile", action="store_true", help="compile once more, to measure it")
    arguments = parser.parse_args()
    features = arguments.features.split(",")
    store = Store.open()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        plans = {provider: planned(provider, features, work) for provider in ("debian", "compiled")}
        images = {name: load_image(build(each, store).image.path) for name, each in plans.items()}
        compiled = found(store, plans["compiled"], "compile")
        bzimages = {"debian": debians_bzimage(store, plans["debian"], work), "compiled": compiled / "bzImage"}
        # Debian's goes with the directory.
        bzimage_bytes = {name: path.stat().st_size for name, path in bzimages.items()}
        override = init_archive(work)
        uptimes: dict[str, list[float]] = {name: [] for name in images}
        ready: dict[str, list[float]] = {name: [] for name in images}
        power_off: dict[str, list[float]] = {f"{name} {form}": [] for name in images for form in FORMS}
        for _ in range(arguments.runs):
            for name, image in images.items():
                for form, kernel in zip(FORMS, (image.kernel, bzimages[name]), strict=True):
                    uptime, seconds = boot(replace(image, kernel=kernel), override, work)
                    power_off[f"{name} {form}"].append(seconds)
                    if form == "ELF":
                        uptimes[name].append(uptime)
                ready[name].append(seconds_to_ready(name, work))
    result = {
        "features": features,
        "uptime_at_init": medians(uptimes),
        "start_to_ready": medians(ready),
        "power_off": medians(power_off),
        "kernel_bytes": {name: image.kernel.stat().st_size for name, image in images.items()},
        "initrd_bytes": {name: image.initrd.stat().st_size for name, image in images.items()},
        "bzimage_bytes": bzimage_bytes,
        "runs": arguments.runs,
        "accelerator": "tcg",
        "qemu": qemu_version(find_qemu(images["debian"].arch)),
        "cpus": os.cpu_count(),
    }
    if arguments.compile:
        result["compile"] = compile_again(store, plans["compiled"])
    RESULTS.mkdir(exist_ok=True)
    suffix = "" if features == ["sandbox"] else "-" + "-".join(features)
    (RESULTS / f"kernel{suffix}.json").write_text(json.dumps(result, indent=2) + "\n")
    return report(result)


def report(result: dict[str, object]) -> int:
    """Print the table and judge."""
    ratios = {}
    print(f"{'':16}  debian  compiled  ratio   (medians of {result['runs']}, seconds)")
    for name in ("uptime_at_init", "start_to_ready"):
        values = result[name]
        assert isinstance(values, dict)
        ratios[name] = values["compiled"] / values["debian"]
        print(f"{name:16}  {values['debian']:6.2f}  {values['compiled']:8.2f}  {ratios[name]:5.2f}")
    power_off, sizes = result["power_off"], result["bzimage_bytes"]
    assert isinstance(power_off, dict)
    assert isinstance(sizes, dict)
    for name, seconds in power_off.items():
        print(f"QEMU to power-off, {name}: {seconds:.2f}")
    print(f"bytes: bzImages {sizes}, kernels {result['kernel_bytes']}, initrds {result['initrd_bytes']}")
    if "compile" in result:
        print(f"compiling: {result['compile']}")
    faster = power_off["compiled ELF"] < power_off["compiled bzImage"]
    return int(ratios["uptime_at_init"] > UPTIME_GOAL or sizes["compiled"] > SIZE_GOAL or not faster)


def planned(provider: str, features: Sequence[str], work: Path) -> Plan:
    """The plan of `base` with the kernel of `provider`, and a project for it."""
    recipe = work / f"{provider}.toml"
    recipe.write_text(RECIPE.format(provider=provider, features=json.dumps(features)))
    project = work / provider
    project.mkdir()
    (project / "airlock.toml").write_text(f'[vm]\nimage = "{recipe}"\nmemory = "512 MB"\ncpus = 1\n')
    return plan(str(recipe))


def init_archive(work: Path) -> bytes:
    """A cpio archive whose /init tells the uptime and powers off; behind an initrd, it takes the place of its own."""
    root = work / "override"
    root.mkdir()
    subprocess.run(
        ["gcc", "-static", "-O1", "-x", "c", "-o", root / "init", "-"], input=INIT, text=True, check=True
    )
    done = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=b"init\n", capture_output=True, check=True
    )
    return done.stdout


def debians_bzimage(store: Store, made: Plan, work: Path) -> Path:
    """Debian's kernel as its package has it, of which airlock boots the ELF kernel inside."""
    (package,) = found(store, made, "fetch", "kernel-package").path.rglob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, work / "package"], check=True)
    (kernel,) = (work / "package" / "boot").glob("vmlinuz-*")
    return kernel


def boot(image: Image, override: bytes, work: Path) -> tuple[float, float]:
    """Boot on the machine that airlock makes, one processor, and power off.

    Seconds of guest uptime when /init starts, wall seconds from QEMU's start to its end.
    """
    initrd, disk, console = work / "initrd", work / "disk", work / "console"
    initrd.write_bytes(image.initrd.read_bytes() + override)
    disk.write_bytes(bytes(1 << 20))
    spec = MachineSpec(
        qemu=find_qemu(image.arch), arch=image.arch, accelerator="tcg", cpus=1, memory=MEMORY, kernel=image.kernel,
        initrd=initrd, rootfs=image.rootfs, rootfs_format=image.rootfs_format, disk=disk, shares=(),
    )  # fmt: skip
    argv = []
    for word in qemu_argv(spec, Channels(0, 0, 0, 0)):
        name = word.partition("id=")[2].partition(",")[0]
        kind = f"file,path={console}" if name == "console" else "null"
        argv.append(f"{kind},id={name}" if word.startswith("socket,") else word)
    begin = time.perf_counter()
    subprocess.run(argv, check=True, timeout=300)
    seconds = time.perf_counter() - begin
    match = re.search(r"INIT-AT ([0-9.]+)", console.read_text(errors="replace"))
    if match is None:
        raise SystemExit(f"the kernel of {image.name} did not reach /init")
    return float(match[1]), seconds


def seconds_to_ready(provider: str, work: Path) -> float:
    """Wall seconds from `airlock start` to airlockd's READY, cold."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [AIRLOCK, "start", "--cold", "-v", "--accel", "tcg", "--", "true"],
        cwd=work / provider, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "airlockd is ready" in line:
                ready = time.perf_counter() - begin
                process.stderr.read()
                return ready
    raise SystemExit(f"airlock start with the kernel of {provider} did not become ready")


def compile_again(store: Store, made: Plan) -> dict[str, float]:
    """Compile the kernel in a directory of its own: wall and processor seconds, unpacking not counted."""
    step = next(step for step in made.steps if step.kind == "compile")
    inputs = {role: found(store, made, needed.kind, needed.name) for role, needed in step.inputs.items()}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        tree, epoch = unpack(inputs["source"].path, Path(directory), lambda _line: None)
        config = (inputs["config"] / "config").read_text()
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        compile_kernel(
            tree,
            step.parameters["arch"],
            config,
            epoch=epoch,
            log=lambda _line: None,
            progress=lambda *_: None,
        )
        after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_seconds": round(end - begin, 1), "processor_seconds": round(used, 1)}


def found(store: Store, made: Plan, kind: str, name: str = "") -> StorePath:
    """The output of a step that was built."""
    step = next(step for step in made.steps if step.kind == kind and name in ("", step.name))
    path = store.find(step.key, step.name)
    if path is None:
        raise SystemExit(f"the store has lost {step.name}")
    return path


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: round(statistics.median(each), 3) for name, each in values.items()}


if __name__ == "__main__":
    sys.exit(main())
