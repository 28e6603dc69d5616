"""From `airlock start` to a finished `docker run`, split into VM, daemon and run; by hand in the same VM; on the host.

The three alternate, so that a busy machine slows all of them; ratios of medians are the result. A run of all takes
minutes under TCG: `--runs 3`, then `--runs 3 --add` as often as wanted, is the same as all at once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

AIRLOCK = Path(sys.executable).with_name("airlock")
RESULT = Path(__file__).parent / "results" / "docker.json"
CPU = "processor"
"""Not a part of the time: the processor time of all parts up to the end of the run."""
GOAL = 0.1
"""What airlock may add to daemon and run, at most."""
RUN = "docker run --rm --network none box /true"
CONFIG = '[vm]\nimage = "docker"\ncpus = 2\n'
BY_HAND = f"{CONFIG}harden = false\n[daemons.dockerd]\nenabled = false\n"
# The same wait as airlockd's own probe of `ready`: one attempt after the other.
SCRIPT = f"""
now() {{ cut -d' ' -f1 /proc/uptime; }}
now; dockerd >/dev/null 2>&1 & until docker info >/dev/null 2>&1; do sleep 0.1; done
now; {RUN}
now
"""


def main() -> int:
    """Measure, print, write JSON; exit code 1 where the goal is missed, which is not about seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--add", action="store_true", help="to the runs of the last time")
    arguments = parser.parse_args()
    seen: dict[str, list[dict[str, float]]] = {}
    if arguments.add and RESULT.exists():
        seen = json.loads(RESULT.read_text())["seen"]
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        image = box(work)
        project = work / "project"
        project.mkdir()
        (project / "box.tar").write_bytes(image)
        (project / "by-hand.sh").write_text(SCRIPT)
        configure(project, CONFIG)
        # The first start makes image, state and disk; the second finds all of them.
        subprocess.run(
            [AIRLOCK, "start", "--", "docker", "import", "box.tar", "box"], cwd=project, check=True
        )
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "airlock": lambda: with_airlock(project),
            "by hand": lambda: by_hand(project),
        }
        if os.geteuid() == 0 and host_dockerd():
            ways["host"] = lambda: on_host(work, image)
        for number in range(arguments.runs):
            # Each way comes first as often as last, so that a load that grows or fades wrongs none of them.
            for name in list(ways)[:: 1 if number % 2 else -1]:
                seen.setdefault(name, []).append(ways[name]())
    return report(seen)


def report(seen: dict[str, list[dict[str, float]]]) -> int:
    """Print, write, and judge airlock's share. `seen` has for each way the seconds of each part, run by run."""
    runs = len(seen["airlock"])
    result = {
        name: {part: round(statistics.median(run[part] for run in each), 3) for part in each[0]}
        for name, each in seen.items()
    }
    for name, parts in result.items():
        split = "  ".join(f"{part} {each:.2f}" for part, each in parts.items())
        total = sum(each for part, each in parts.items() if part != CPU)
        print(f"{name:8} {total:6.2f} s  {split}")
    bare = result["by hand"]["daemon"] + result["by hand"]["run"]
    share = sum(result["airlock"][part] for part in ("VM", "daemon", "run")) / bare - 1
    print(
        f"airlock's share on top of daemon and run: {share:.1%} (goal: {GOAL:.0%} at most; {runs} runs, medians)"
    )
    used = result["airlock"][CPU] / result["by hand"][CPU] - 1
    print(f"the same in processor time, start of the VM and all: {used:.1%}")
    if "host" in result:
        host = result["host"]["daemon"] + result["host"]["run"]
        print(f"the same on the host: airlock takes {(1 + share) * bare / host:.1f} times as long")
    RESULT.parent.mkdir(exist_ok=True)
    measured = {
        "parts": result,
        "share": round(share, 3),
        "share of processor": round(used, 3),
        "runs": runs,
        "cpus": os.cpu_count(),
        "seen": seen,
    }
    RESULT.write_text(json.dumps(measured, indent=2) + "\n")
    return int(share > GOAL)


def configure(project: Path, text: str) -> None:
    """Write the project's config."""
    (project / "airlock.toml").write_text(text)


def with_airlock(project: Path) -> dict[str, float]:
    """Seconds of each part of `airlock start -- docker run`, with the recipe's daemon."""
    configure(project, CONFIG)
    marks = project / "timeline.json"
    begin = time.perf_counter()
    with subprocess.Popen(
        [AIRLOCK, "start", "-q", "--", "sh", "-ec", f"echo up; {RUN}; echo over"],
        cwd=project, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "AIRLOCK_TIMELINE": str(marks)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        times = [
            (line.strip(), time.perf_counter() - begin, processor(process.pid)) for line in process.stdout
        ]
    end = time.perf_counter() - begin
    if [word for word, *_ in times] != ["up", "over"]:
        raise SystemExit(f"airlock start said {times}")
    machine = dict(json.loads(marks.read_text()))["configured"]
    (_, up, _), (_, over, used) = times
    return {"VM": machine, "daemon": up - machine, "run": over - up, "shutdown": end - over, CPU: used}


def by_hand(project: Path) -> dict[str, float]:
    """Seconds of daemon and run as the guest counts them, without airlock's part in either."""
    configure(project, BY_HAND)
    with subprocess.Popen(
        [AIRLOCK, "start", "-q", "--", "sh", "-e", "./by-hand.sh"],
        cwd=project, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        seen = [(float(line), processor(process.pid)) for line in process.stdout]
    (begin, before), (ready, _), (end, after) = seen
    return {"daemon": ready - begin, "run": end - ready, CPU: after - before}


def processor(pid: int) -> float:
    """Seconds of processor time that a session and its QEMU have used so far, which other load hardly changes."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    stats = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in (pid, *children)]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def host_dockerd() -> str | None:
    """The host's own daemon, if it has one."""
    return shutil.which("dockerd", path=os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin")))


def on_host(work: Path, image: bytes) -> dict[str, float]:
    """Seconds of daemon and run with a daemon on the host, apart from its network and from its own Docker."""
    program = host_dockerd()
    assert program is not None
    home = work / "dockerd"
    home.mkdir(exist_ok=True)
    client = ["docker", "--host", f"unix://{home}/docker.sock"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    begin = time.perf_counter()
    with subprocess.Popen(
        [
            program, "--host", f"unix://{home}/docker.sock", "--data-root", home / "data", "--exec-root", home / "exec",
            "--pidfile", home / "pid", "--bridge", "none", "--iptables=false", "--ip-forward=false",
        ],
        **quiet,
    ) as daemon:  # fmt: skip
        try:
            while subprocess.run([*client, "info"], check=False, **quiet).returncode:
                if daemon.poll() is not None:
                    raise SystemExit("dockerd does not run on this host")
                time.sleep(0.1)
            ready = time.perf_counter()
            if subprocess.run([*client, "image", "inspect", "box"], check=False, **quiet).returncode:
                subprocess.run(
                    [*client, "import", "-", "box"], input=image, check=True, stdout=subprocess.DEVNULL
                )
            imported = time.perf_counter()
            subprocess.run([*client, *RUN.split()[1:]], check=True, **quiet)
            end = time.perf_counter()
        finally:
            daemon.terminate()
    return {"daemon": ready - begin, "run": end - imported}


def box(work: Path) -> bytes:
    """A container image with one static program that does nothing, as a tar."""
    program = work / "true"
    source = "int main(void) { return 0; }"
    subprocess.run(
        ["gcc", "-static", "-O1", "-x", "c", "-o", program, "-"], input=source, text=True, check=True
    )
    data = program.read_bytes()
    entry = tarfile.TarInfo("true")
    entry.mode, entry.size = 0o755, len(data)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


if __name__ == "__main__":
    sys.exit(main())
