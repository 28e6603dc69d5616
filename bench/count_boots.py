"""Counts cold boots: how many of N reach READY, and how many needed the watchdog. `python bench/count_boots.py [N]`.

Reliability is a number here, not a feeling: FACTS and docs/performance.md quote what this prints.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

AIRLOCK = Path(sys.executable).with_name("airlock")
CONFIG = '[vm]\nimage = "base"\nmemory = "512 MB"\ncpus = {cpus}\n'


def main() -> int:
    """Boot and say; exit code 1 if a boot failed for good."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    good = again = 0
    with tempfile.TemporaryDirectory() as directory:
        for number in range(count):
            # One and two processors in turn: the hang that FACTS.md describes depended on it.
            (Path(directory) / "airlock.toml").write_text(CONFIG.format(cpus=1 + number % 2))
            done = subprocess.run(
                [AIRLOCK, "start", "--cold", "--accel", "tcg", "-v", "--", "true"],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            good += done.returncode == 0
            again += done.stderr.count("booting again")
            if done.returncode or "booting again" in done.stderr:
                print(f"boot {number + 1}: exit code {done.returncode}\n{done.stderr}", flush=True)
            if (number + 1) % 20 == 0:
                print(f"{good} of {number + 1} good, {again} booted again by the watchdog", flush=True)
    return 0 if good == count else 1


if __name__ == "__main__":
    sys.exit(main())
