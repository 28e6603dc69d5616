"""What idle sandboxes cost: proportional set size of 1, 5 and 10 that were restored from one state.

PSS counts a page that n processes share as 1/n in each. TCG's translation cache (anonymous memory that is executable)
is told apart, because it is the emulator's, and a KVM guest has none.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

AIRLOCK = Path(sys.executable).with_name("airlock")
RESULTS = Path(__file__).parent / "results"
CONFIG = '[vm]\nimage = "base"\nmemory = "512 MB"\ncpus = 1\n'
COUNTS = (1, 5, 10)
MIB = 1024**2


def main() -> int:
    """Measure, print, and write JSON."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        warm = Path(directory) / "warm"
        project(warm)
        subprocess.run([AIRLOCK, "-q", "start", "--", "true"], cwd=warm, check=True)
        running: list[subprocess.Popen[bytes]] = []
        try:
            for count in COUNTS:
                while len(running) < count:
                    running.append(start(Path(directory) / str(len(running))))
                machines = [measure(child(process.pid)) for process in running]
                rows.append(
                    {key: round(sum(machine[key] for machine in machines) / MIB, 1) for key in machines[0]}
                )
                rows[-1]["sandboxes"] = count
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
    first, last = rows[0], rows[-1]
    more = (last["pss"] - last["translated"] - first["pss"] + first["translated"]) / (COUNTS[-1] - 1)
    print("sandboxes  PSS MB  of it translation cache  guest RAM  the rest of QEMU")
    for row in rows:
        rest = row["pss"] - row["translated"] - row["ram"]
        print(f"{row['sandboxes']:9}  {row['pss']:6}  {row['translated']:23}  {row['ram']:9}  {rest:16.1f}")
    print(f"each more costs {more:.1f} MB without its translation cache")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(
        json.dumps({"rows": rows, "each_more": round(more, 1)}, indent=2) + "\n"
    )
    return 0


def project(directory: Path) -> None:
    """A small project at `directory`."""
    directory.mkdir()
    (directory / "airlock.toml").write_text(CONFIG)


def start(directory: Path) -> subprocess.Popen[bytes]:
    """A sandbox that idles, past the point where its command runs."""
    project(directory)
    process = subprocess.Popen(
        [AIRLOCK, "-q", "start", "--", "sh", "-c", "echo up; exec sleep infinity"],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def child(pid: int) -> int:
    """The only child of a process: QEMU."""
    (found,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found)


def measure(pid: int) -> dict[str, float]:
    """Bytes of PSS of a process: in all, in its translation cache, and in the guest's RAM."""
    sums = {"pss": 0.0, "translated": 0.0, "ram": 0.0}
    header = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            header = line
        elif line.startswith("Pss:"):
            size = int(line.split()[1]) * 1024
            sums["pss"] += size
            words = header.split()
            if "x" in words[1] and len(words) == 5:
                sums["translated"] += size
            elif header.endswith(("/ram", "/ram (deleted)")):
                sums["ram"] += size
    return sums


if __name__ == "__main__":
    sys.exit(main())
