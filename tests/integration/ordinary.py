"""An ordinary user of this machine, who has a home with a copy of the code that only he can enter."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def ordinary_user(tmp_path: Path) -> Iterator[tuple[Path, Any]]:
    """A home that only its owner may enter, and a function that runs a script there as that owner."""
    if os.geteuid() != 0:
        home = tmp_path / "home"
        home.mkdir(mode=0o700)
        yield home, _runner(home, sys.executable, None)
        return
    name = f"airlock-test-{os.getpid()}"
    home = Path("/var/tmp", name)
    subprocess.run(
        ["useradd", "--create-home", "--home-dir", home, "--key", "HOME_MODE=0700", name], check=True
    )
    try:
        assert home.stat().st_mode & 0o777 == 0o700
        user = pwd.getpwnam(name)
        yield home, _runner(home, _python_for(user), user)
    finally:
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


def _runner(home: Path, python: str, user: pwd.struct_passwd | None) -> Any:
    code = home / "code"
    code.mkdir()
    # A checkout and an environment may be where only root can read.
    for package in ("airlock_builder", "airlock_store", "airlockd", "tomlkit", "platformdirs", "sh"):
        # Not find_spec: `sh` puts something of its own in the place of its module.
        spec = PathFinder.find_spec(package)
        assert spec and spec.origin
        origin = Path(spec.origin)
        if origin.name == "__init__.py":
            parent = "builder" if package == "airlock_builder" else ""
            shutil.copytree(origin.parent, code / parent / package)
        else:
            shutil.copy(origin, code)
    checkout = Path(__file__).resolve().parents[2]
    for name in ("recipes", "kernel-configs"):
        shutil.copytree(checkout / name, code / name)
    shutil.copy(checkout / "pyproject.toml", code)

    def run(script: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        if user:
            subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", home], check=True)
        return subprocess.run(
            [python, "-c", script, *arguments],
            cwd=home,
            env={"HOME": str(home), "PATH": os.defpath, "PYTHONPATH": f"{code}:{code}/builder", **environ},
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def _python_for(user: pwd.struct_passwd) -> str:
    """A Python that `user` may run: this one may lie in root's home."""
    for python in (sys.executable, "/usr/bin/python3"):
        argv = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            subprocess.run(argv, user=user.pw_uid, group=user.pw_gid, check=True, cwd="/")
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.fail("no Python that an ordinary user can run: install the package python3", pytrace=False)
