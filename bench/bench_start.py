"""Starts against a bare QEMU boot of the same kernel and initrd to power-off: warm, cold, exec, and ten at once.

All alternate in one run, so that a busy machine slows all of them; ratios of medians are the result. A ratio may not be
worse than its goal, nor by more than SLACK than what `baseline.json` says was reached; `--accept` makes that file anew.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from airlock_builder.build import build, plan
from airlock_runner.machine.argv import Channels, MachineSpec, qemu_argv
from airlock_runner.machine.qemu import find_qemu, qemu_version
from airlock_store.image import Image, load_image
from airlock_store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AIRLOCK = Path(sys.executable).with_name("airlock")
RESULTS = Path(__file__).parent / "results"
BASELINE = Path(__file__).with_name("baseline.json")
SLACK = 1.3
"""How much worse than the baseline a ratio may be: medians of few runs on a shared machine differ by as much."""
POWER_OFF = "#include <sys/reboot.h>\nint main(void) { return reboot(RB_POWER_OFF); }\n"
MEMORY = 512 * 1024**2
GOALS = {"warm start": 0.6, "exec": 0.25}
"""Of a bare boot, at most: these were reached, and `make bench` fails where they no longer are."""
TEN = "ten at once of one"
TEN_GOAL = 4.0
"""Ten at once against one, at most: not reached on two cores, see docs/performance.md."""
PROCESSORS = len(os.sched_getaffinity(0))
CROWD = "one for each processor"
"""As many starts at once, none of which waits for another. What they cost more than one alone, the processors make."""


class Cost(NamedTuple):
    """Seconds by the clock, and of processor time of all processes."""

    wall: float
    cpu: float


def main() -> int:
    """Measure, print, write JSON; exit code 1 where a ratio is worse than it may be, which is never about seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--accept", action="store_true", help="make the ratios of this run the baseline")
    arguments = parser.parse_args()
    # An installed airlock is compiled; a checkout is, unless Python is told not to keep what it compiled.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    image = load_image(build(plan("base"), Store.open()).image.path)
    with tempfile.TemporaryDirectory() as directory:
        costs = measure(image, Path(directory), arguments.runs)
    medians = {
        name: Cost(*(statistics.median(values) for values in zip(*each, strict=True)))
        for name, each in costs.items()
    }
    ratios = report(medians, arguments.runs, image)
    if arguments.accept:
        BASELINE.write_text(json.dumps(ratios, indent=2) + "\n")
    return judge(ratios, json.loads(BASELINE.read_text()))


def measure(image: Image, work: Path, runs: int) -> dict[str, list[Cost]]:
    """What each way costs, in each round."""
    projects = [project(work / str(number)) for number in range(max(10, PROCESSORS))]
    ways: dict[str, Callable[[], object]] = {
        "bare boot": bare_boot(image, work),
        "cold start": lambda: run(projects[0], "--cold"),
        "warm start": lambda: run(projects[0]),
        CROWD: lambda: together(projects[:PROCESSORS]),
        "ten at once": lambda: together(projects[:10]),
    }
    # The first start saves the state; the first of each project makes and formats its disk.
    for place in projects:
        run(place)
    costs: dict[str, list[Cost]] = {name: [] for name in (*ways, "exec")}
    for _ in range(runs):
        for name, way in ways.items():
            costs[name].append(cost(way))
        with idle(projects[1]):
            costs["exec"].append(cost(lambda: execute(projects[1])))
    return costs


def report(medians: dict[str, Cost], runs: int, image: Image) -> dict[str, float]:
    """Print the table, write it as JSON, and give the ratios."""
    bare, one = medians["bare boot"].wall, medians["warm start"]
    single = ("cold start", "warm start", "exec")
    ratios = {name: round(medians[name].wall / bare, 3) for name in single}
    ratios[TEN] = round(medians["ten at once"].wall / one.wall, 2)
    print(f"{'':22}  seconds  of a bare boot  goal     seconds of processor   (medians of {runs})")
    for name, cost in medians.items():
        goal = f"<= {GOALS[name]}" if name in GOALS else ""
        print(f"{name:22}  {cost.wall:7.2f}  {cost.wall / bare:14.2f}  {goal:7}  {cost.cpu:20.2f}")
    print(f"ten at once are {ratios[TEN]:.1f} of one warm start, goal <= {TEN_GOAL}; {bounds(medians)}")
    result = {
        "seconds": {name: round(cost.wall, 3) for name, cost in medians.items()},
        "processor_seconds": {name: round(cost.cpu, 3) for name, cost in medians.items()},
        "ratios": ratios,
        "runs": runs,
        "accelerator": "tcg",
        "qemu": qemu_version(find_qemu(image.arch)),
        "cpus": PROCESSORS,
        "machine": platform.machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "start.json").write_text(json.dumps(result, indent=2) + "\n")
    return ratios


def bounds(medians: dict[str, Cost]) -> str:
    """What ten at once take at least, of one: by the processor time of one alone, and of one in a crowd."""
    one = medians["warm start"]
    alone, crowded = (10 * cpu / PROCESSORS / one.wall for cpu in (one.cpu, medians[CROWD].cpu / PROCESSORS))
    return (
        f"on {PROCESSORS} processors the processor time of one alone makes it {alone:.1f}, "
        f"and that of one of {PROCESSORS} at once {crowded:.1f}"
    )


def judge(ratios: dict[str, float], baseline: dict[str, float]) -> int:
    """Say which ratios are worse than they may be; exit code 1 if any is."""
    worse = [
        f"{name} is {ratio}, at most {limit:.2f} was allowed"
        for name, ratio in ratios.items()
        if ratio > (limit := min(GOALS.get(name, float("inf")), SLACK * baseline.get(name, float("inf"))))
    ]
    for line in worse:
        print(f"worse: {line}")
    return 1 if worse else 0


def project(directory: Path) -> Path:
    """A small project at `directory`."""
    directory.mkdir()
    (directory / "airlock.toml").write_text('[vm]\nimage = "base"\nmemory = "512 MB"\ncpus = 1\n')
    return directory


def run(place: Path, *options: str) -> None:
    """`true` in a sandbox, from process to process."""
    subprocess.run([AIRLOCK, "start", "-q", "--accel", "tcg", *options, "--", "true"], cwd=place, check=True)


def together(places: list[Path]) -> None:
    """One start in each, all at the same time."""
    command = [AIRLOCK, "start", "-q", "--accel", "tcg", "--", "true"]
    started = [subprocess.Popen(command, cwd=place, stdin=subprocess.DEVNULL) for place in places]
    if any(process.wait() for process in started):
        raise SystemExit("a start failed")


def execute(place: Path) -> None:
    """`true` in the sandbox that runs."""
    subprocess.run([AIRLOCK, "exec", "true"], cwd=place, check=True)


@contextmanager
def idle(place: Path) -> Iterator[None]:
    """A sandbox that does nothing, for a block."""
    command = [AIRLOCK, "start", "-q", "--accel", "tcg", "--", "sh", "-c", "echo up; exec sleep infinity"]
    process = subprocess.Popen(command, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def bare_boot(image: Image, work: Path) -> Callable[[], object]:
    """A boot of the image's kernel and initrd on the same machine, whose init powers off at once.

    The initrd is the image's own, followed by a second archive whose /init takes the place of the first's.
    """
    root = work / "override"
    root.mkdir()
    subprocess.run(
        ["gcc", "-static", "-O1", "-x", "c", "-o", root / "init", "-"], input=POWER_OFF, text=True, check=True
    )
    override = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=b"init\n", capture_output=True, check=True
    )
    initrd = work / "initrd"
    initrd.write_bytes(image.initrd.read_bytes() + override.stdout)
    disk = work / "disk.img"
    disk.write_bytes(bytes(1024**2))
    spec = MachineSpec(
        qemu=find_qemu(image.arch), arch=image.arch, accelerator="tcg", cpus=1, memory=MEMORY, kernel=image.kernel,
        initrd=initrd, rootfs=image.rootfs, rootfs_format=image.rootfs_format, disk=disk, shares=(),
    )  # fmt: skip
    argv = [
        word if not word.startswith("socket,") else f"null,id={word.split('id=')[1].split(',')[0]}"
        for word in qemu_argv(spec, Channels(0, 0, 0, 0))
    ]
    return lambda: subprocess.run(argv, check=True, timeout=120)


def cost(action: Callable[[], object]) -> Cost:
    """What `action` takes, with all processes that it waits for."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    action()
    end, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(end - begin, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


if __name__ == "__main__":
    sys.exit(main())
