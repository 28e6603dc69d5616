"""Draws where the time of a warm `airlock start -q -- true` goes: docs/start-timeline.svg, of the median of runs."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

AIRLOCK = Path(sys.executable).with_name("airlock")
PICTURE = Path(__file__).parents[1] / "docs" / "start-timeline.svg"
PHASES = {
    "request": "process, config, image",
    "QEMU started": "lock, disk, QEMU's exec",
    "ready": "restore and verify",
    "configured": "configure",
    "command ended": "exec of the command",
    "end": "shutdown",
}
"""Each mark of airlock_runner.timeline ends a phase."""
COLOURS = ("#4c72b0", "#8c8c8c", "#dd8452", "#55a868", "#8172b3", "#c44e52")
WIDTH, BAR, LEFT = 900, 34, 20


def main() -> int:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as directory:
        runs = [marks(Path(directory)) for _ in range(count)]
    points = [(name, statistics.median(run[name] for run in runs)) for name in PHASES]
    begin = 0.0
    for name, end in points:
        print(f"{PHASES[name]:24} {1000 * (end - begin):6.0f} ms")
        begin = end
    print(f"{'all':24} {1000 * begin:6.0f} ms")
    PICTURE.write_text(draw(points))
    print(f"drawn in {PICTURE}")
    return 0


def marks(place: Path) -> dict[str, float]:
    """Seconds from the start of the process to each mark, of one warm start of a project at `place`."""
    (place / "airlock.toml").write_text('[vm]\nimage = "base"\nmemory = "512 MB"\ncpus = 1\n')
    command = [AIRLOCK, "start", "-q", "--", "true"]
    if not (place / ".airlock").exists():
        subprocess.run(command, cwd=place, check=True)
    target = place / "timeline.json"
    subprocess.run(command, cwd=place, check=True, env={**os.environ, "AIRLOCK_TIMELINE": str(target)})
    return dict(json.loads(target.read_text()))


def draw(points: list[tuple[str, float]]) -> str:
    """The phases as one bar with a scale, and a legend below."""
    total = points[-1][1]
    scale = (WIDTH - 2 * LEFT) / total
    parts, legend, begin = [], [], 0.0
    for number, ((name, end), colour) in enumerate(zip(points, COLOURS, strict=True)):
        at, length = LEFT + begin * scale, (end - begin) * scale
        parts.append(f'<rect x="{at:.1f}" y="20" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
        row = 110 + 22 * number
        legend.append(f'<rect x="{LEFT}" y="{row - 11}" width="12" height="12" fill="{colour}"/>')
        legend.append(f'<text x="{LEFT + 20}" y="{row}">{PHASES[name]}: {1000 * (end - begin):.0f} ms</text>')
        begin = end
    ticks = [
        f'<text x="{LEFT + second / 10 * scale:.1f}" y="72" text-anchor="middle">{second / 10:.1f} s</text>'
        for second in range(0, int(total * 10) + 1, 2)
    ]
    height = 110 + 22 * len(points)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="13">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join([*parts, *ticks, *legend])
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    sys.exit(main())
