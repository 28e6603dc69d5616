"""Debian's kernel against one that is compiled for `sandbox`: uptime at /init, start to READY, sizes, compile time.

The boots alternate in one run, so that a busy machine slows both; ratios of medians are the result.
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
    from airlock_builder.plan import Plan

AIRLOCK = Path(sys.executable).with_name("airlock")
RESULTS = Path(__file__).parent / "results"
# Of the same name as `base`, to share its disk.
RECIPE = '[recipe]\nname = "base"\nextends = "base"\n[kernel]\nprovider = "{provider}"\n'
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


def main() -> int:
    """Measure, print, write JSON; exit code 1 where a goal is missed, and none of them is about seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="compile once more, to measure it")
    arguments = parser.parse_args()
    store = Store.open()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        plans = {provider: planned(provider, work) for provider in ("debian", "compiled")}
        images = {name: load_image(build(each, store).image.path) for name, each in plans.items()}
        override = init_archive(work)
        uptimes: dict[str, list[float]] = {name: [] for name in images}
        ready: dict[str, list[float]] = {name: [] for name in images}
        for _ in range(arguments.runs):
            for name, image in images.items():
                uptimes[name].append(uptime_at_init(image, override, work))
                ready[name].append(seconds_to_ready(name, work))
    compiled = found(store, plans["compiled"], "compile")
    result = {
        "uptime_at_init": medians(uptimes),
        "start_to_ready": medians(ready),
        "kernel_bytes": {name: image.kernel.stat().st_size for name, image in images.items()},
        "initrd_bytes": {name: image.initrd.stat().st_size for name, image in images.items()},
        "bzimage_bytes": (compiled / "bzImage").stat().st_size,
        "runs": arguments.runs,
        "accelerator": "tcg",
        "qemu": qemu_version(find_qemu(images["debian"].arch)),
        "cpus": os.cpu_count(),
    }
    if arguments.compile:
        result["compile"] = compile_again(store, plans["compiled"])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kernel.json").write_text(json.dumps(result, indent=2) + "\n")
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
    size = result["bzimage_bytes"]
    assert isinstance(size, int)
    print(
        f"bzImage {size / 2**20:.1f} MiB, kernels {result['kernel_bytes']}, initrds {result['initrd_bytes']}"
    )
    if "compile" in result:
        print(f"compiling: {result['compile']}")
    return int(ratios["uptime_at_init"] > UPTIME_GOAL or size > SIZE_GOAL)


def planned(provider: str, work: Path) -> Plan:
    """The plan of `base` with the kernel of `provider`, and a project for it."""
    recipe = work / f"{provider}.toml"
    recipe.write_text(RECIPE.format(provider=provider))
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


def uptime_at_init(image: Image, override: bytes, work: Path) -> float:
    """Seconds of guest uptime when /init starts, on the machine that airlock makes, one processor."""
    initrd, disk, console = work / "initrd", work / "disk", work / "console"
    initrd.write_bytes(image.initrd.read_bytes() + override)
    disk.write_bytes(bytes(1 << 20))
    spec = MachineSpec(
        qemu=find_qemu(image.arch), arch=image.arch, accelerator="tcg", cpus=1, memory=MEMORY, kernel=image.kernel,
        initrd=initrd, rootfs=image.rootfs, rootfs_format=image.rootfs_format, disk=disk, shares=(),
    )  # fmt: skip
    argv = []
    for word in qemu_argv(spec, Channels(0, 0, 0)):
        name = word.partition("id=")[2].partition(",")[0]
        kind = f"file,path={console}" if name == "console" else "null"
        argv.append(f"{kind},id={name}" if word.startswith("socket,") else word)
    subprocess.run(argv, check=True, timeout=300)
    match = re.search(r"INIT-AT ([0-9.]+)", console.read_text(errors="replace"))
    if match is None:
        raise SystemExit(f"the kernel of {image.name} did not reach /init")
    return float(match[1])


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
