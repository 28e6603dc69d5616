"""Shares against the sandbox's own disk: a tree of 2,000 files unpacked, walked and deleted; 100 MB read and written.

Two sandboxes run, one whose project is shared over 9p and one over virtio-fs where this host has a virtiofsd. All ways
alternate in one run, so that a busy machine slows all of them; ratios of medians to the disk are the result. The
guest's clock measures, so that `airlock exec` itself is no part of it.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from airlock_runner.machine.virtiofs import find_daemon
from airlock_store.errors import MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

AIRLOCK = Path(sys.executable).with_name("airlock")
RESULTS = Path(__file__).parent / "results"
FILES, DIRECTORIES, SIZE = 2000, 40, 2000
DISK = "/airlock/disk"
JOBS = {
    "untar": "tar -xf /airlock/disk/tree.tar",
    "stat": "find tree -type f -size +1M",
    "delete": "rm -rf tree",
    "write 100 MB": "dd if=/dev/zero of=big bs=128k count=800",
    "read 100 MB": "dd if=big of=/dev/null bs=128k",
    "read 8 MB by 4 kB": "dd if=big of=/dev/null bs=4k count=2000",
}
"""In this order, each in the place that is measured; before each, writes are flushed and caches dropped."""


def main() -> int:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        ways: dict[str, tuple[Path, str]] = {}
        for kind in kinds():
            place = Path(directory, kind)
            stack.enter_context(sandbox(place, kind))
            ways[kind] = (place, str(place))
            ways.setdefault("disk", (place, DISK))
        times: dict[str, dict[str, list[float]]] = {way: {job: [] for job in JOBS} for way in ways}
        for _ in range(runs):
            for job in JOBS:
                for way, (place, where) in ways.items():
                    times[way][job].append(measure(place, where, job))
    report(
        {way: {job: statistics.median(all_) for job, all_ in jobs.items()} for way, jobs in times.items()},
        runs,
    )
    return 0


def kinds() -> list[str]:
    """The kinds of share that this host can offer."""
    try:
        find_daemon()
    except MachineError as error:
        print(f"without virtiofs: {error}")
        return ["9p"]
    return ["9p", "virtiofs"]


def report(medians: dict[str, dict[str, float]], runs: int) -> None:
    """Print the table, write it as JSON."""
    ratios = {
        way: {job: round(seconds / medians["disk"][job], 2) for job, seconds in jobs.items()}
        for way, jobs in medians.items()
    }
    print(
        f"{'':20}"
        + "".join(f"{way:>20}" for way in medians)
        + f"   (seconds, of the disk; medians of {runs})"
    )
    for job in JOBS:
        print(
            f"{job:20}"
            + "".join(f"{jobs[job]:12.2f} {ratios[way][job]:7.2f}" for way, jobs in medians.items())
        )
    RESULTS.mkdir(exist_ok=True)
    result = {"seconds": medians, "of_disk": ratios, "runs": runs, "machine": platform.machine()}
    (RESULTS / "shares.json").write_text(json.dumps(result, indent=2) + "\n")


def measure(place: Path, where: str, job: str) -> float:
    """Seconds that a job takes in the directory `where` of the sandbox of `place`."""
    script = (
        f"cd '{where}'; sync; echo 3 >/proc/sys/vm/drop_caches; a=$(date +%s%N); {JOBS[job]} >/dev/null 2>&1 || exit;"
        "b=$(date +%s%N); echo $((b - a))"
    )
    return int(inside(place, script)) / 1e9


def inside(place: Path, script: str) -> str:
    """What a script says in the sandbox of `place`."""
    done = subprocess.run(
        [AIRLOCK, "exec", "sh", "-c", script], cwd=place, check=True, capture_output=True, text=True
    )
    return done.stdout


@contextmanager
def sandbox(place: Path, kind: str) -> Iterator[None]:
    """One that waits, for a block, with the tree to unpack on its disk."""
    place.mkdir()
    (place / "airlock.toml").write_text(
        f'[vm]\nimage = "base"\nmemory = "512 MB"\ncpus = 1\nharden = false\nshare = "{kind}"\n'
    )
    (place / "tree.tar").write_bytes(tree())
    command = [AIRLOCK, "start", "-q", "--", "sh", "-c", f"mv tree.tar {DISK}; echo up; exec sleep infinity"]
    process = subprocess.Popen(command, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def tree() -> bytes:
    """A tar of FILES files of SIZE bytes, in DIRECTORIES directories."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(FILES):
            member = tarfile.TarInfo(f"tree/{number % DIRECTORIES}/{number}")
            member.size = SIZE
            tar.addfile(member, io.BytesIO(bytes(SIZE)))
    return packed.getvalue()


if __name__ == "__main__":
    sys.exit(main())
