"""What the command line itself costs: `airlock --help` against an empty Python, and a build that has nothing to do.

All alternate in one run. A ratio is one of medians; a time that has a goal in seconds is the shortest, since a busy
machine can only add to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

AIRLOCK = str(Path(sys.executable).with_name("airlock"))
RESULTS = Path(__file__).parent / "results"
WAYS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "airlock --help": [AIRLOCK, "--help"],
    "airlock build base": [AIRLOCK, "-q", "build", "base"],
}
HELP_GOAL, BUILD_GOAL = 4.0, 0.5
"""Of an empty Python, at most; and seconds, less than."""


def main() -> int:
    """Measure, print, write JSON; exit code 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    for command in WAYS.values():
        # The image is built and all files are read once before anything is measured.
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(runs):
        for name, command in WAYS.items():
            begin = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'':20}  median s  shortest s  of an empty Python   ({runs} runs)")
    empty = medians["python -c pass"]
    for name, median in medians.items():
        print(f"{name:20}  {median:8.3f}  {min(times[name]):10.3f}  {median / empty:18.2f}")
    ratio, build = medians["airlock --help"] / empty, min(times["airlock build base"])
    print(f"goals: help <= {HELP_GOAL} of an empty Python, build < {BUILD_GOAL} s")
    result = {
        "median_seconds": {name: round(median, 4) for name, median in medians.items()},
        "shortest_seconds": {name: round(min(values), 4) for name, values in times.items()},
        "help_of_python": round(ratio, 2),
        "runs": runs,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cli.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0 if ratio <= HELP_GOAL and build < BUILD_GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
