"""What an idle sandbox costs the host: processor time of QEMU and the session over a minute, in per cent of one core.

It is counted in processor time and not by the clock, so a busy machine changes little; the goal is absolute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AIRLOCK = Path(sys.executable).with_name("airlock")
RESULTS = Path(__file__).parent / "results"
CONFIG = '[vm]\nimage = "base"\nmemory = "512 MB"\ncpus = {cpus}\n'
GOAL = 1.0
"""Per cent of one core, QEMU and session together."""
SETTLE = 10
"""Seconds that a sandbox has to come to rest in."""
SCRIPT = "echo up; exec sleep infinity"


def main() -> int:
    """Measure, print, write JSON; exit code 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--cpus", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    rows = [measure(cpus, options.seconds) for cpus in options.cpus]
    print(f"vCPUs  QEMU %  session %  both %   (of one core, over {options.seconds} s; goal < {GOAL})")
    for row in rows:
        print(f"{row['cpus']:5}  {row['qemu']:6}  {row['session']:9}  {row['qemu'] + row['session']:6.2f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "idle.json").write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(row["qemu"] + row["session"] >= GOAL for row in rows) else 0


def measure(cpus: int, seconds: int) -> dict[str, float]:
    """One idle sandbox with so many virtual processors."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "airlock.toml").write_text(CONFIG.format(cpus=cpus))
        process = subprocess.Popen(
            [AIRLOCK, "-q", "start", "--", "sh", "-c", SCRIPT],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            (qemu,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
            time.sleep(SETTLE)
            before = processor_time(qemu), processor_time(process.pid)
            time.sleep(seconds)
            after = processor_time(qemu), processor_time(process.pid)
        finally:
            process.terminate()
            process.wait()
    share = [round(100 * (late - early) / seconds, 2) for early, late in zip(before, after, strict=True)]
    return {"cpus": cpus, "qemu": share[0], "session": share[1]}


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used, in user and kernel mode (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
