"""Which accelerator this host really has. Only a booted guest proves one, so the proof is a boot with a deadline.

The session's first start is that proof at no extra cost; `airlock doctor` makes one with an image of the store. The
verdict is kept until the host reboots or another QEMU is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from airlock_store.errors import MachineError

NATIVE = {"linux": "kvm", "darwin": "hvf"}
PROBE_SECONDS = 20.0
"""A guest under hardware acceleration is READY in about a second; one that is not by then is not run at all."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of hardware acceleration here: `accelerator` to use and why; by a boot, if it is `proven`."""

    accelerator: str
    reason: str
    proven: bool = True


@dataclass(frozen=True, slots=True)
class Candidates:
    """What to try, best first, and whether the first one has yet to prove itself."""

    accelerators: tuple[str, ...]
    unproven: bool
    reason: str


def candidates(wanted: str, arch: str, qemu: Path) -> Candidates:
    """What to try for `wanted` (auto, kvm, hvf or tcg). Raises MachineError where it cannot be had here."""
    native = NATIVE.get(sys.platform, "")
    if wanted == "tcg":
        return Candidates(("tcg",), False, "asked for")
    obstacle = _obstacle(native, arch)
    if wanted != "auto":
        if wanted != native or obstacle:
            reason = obstacle if wanted == native else f"this system has no {wanted}"
            raise MachineError(
                f"the accelerator {wanted} cannot be used: {reason}",
                hint="use --accel auto or --accel tcg",
            )
        return Candidates((wanted,), False, "asked for")
    if obstacle:
        return Candidates(("tcg",), False, obstacle)
    known = recall(qemu)
    if known is None or not known.proven:
        return Candidates((native, "tcg"), True, "not proven yet")
    return Candidates((known.accelerator,), False, known.reason)


def recall(qemu: Path) -> Verdict | None:
    """The verdict of this host boot and this QEMU, if there is one."""
    try:
        values = json.loads(_verdict_file().read_text())
        if values.pop("host") == _host(qemu):
            return Verdict(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return None


def remember(qemu: Path, verdict: Verdict) -> None:
    """Keep a verdict. That it cannot be kept is no reason to fail."""
    path = _verdict_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({**asdict(verdict), "host": _host(qemu)}))
        temporary.replace(path)
    except OSError:
        pass


def is_news(qemu: Path, reason: str) -> bool:
    """Whether that there is only tcg, for this `reason`, is news to the user; from now on it is none."""
    known = recall(qemu)
    if known is not None and known.reason == reason:
        return False
    # What is in the way may be gone at the next start, without a boot of the host.
    remember(qemu, Verdict("tcg", reason, proven=False))
    return True


def _obstacle(native: str, arch: str) -> str:
    """Why hardware acceleration is out of the question, or nothing."""
    if not native:
        return "this system has no accelerator that airlock knows"
    if os.uname().machine not in (arch, {"aarch64": "arm64"}.get(arch)):
        return f"the image is for {arch}, this machine is not"
    if native == "kvm":
        if not os.path.exists("/dev/kvm"):
            return "there is no /dev/kvm"
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return "/dev/kvm may not be opened by this user (is the user in the group kvm?)"
    return ""


def _verdict_file() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("airlock"), "accelerator.json")


def _host(qemu: Path) -> str:
    """This boot of this host with this QEMU."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = subprocess.run(
            ["sysctl", "-n", "kern.boottime"], capture_output=True, text=True, check=False
        ).stdout.strip()
    status = qemu.stat()
    return f"{boot} {qemu} {status.st_mtime_ns} {status.st_size}"
