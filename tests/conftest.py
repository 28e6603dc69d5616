"""What tests share: one store with one image, built once; projects; and the installed `airlock` command.

The store is the user's own, so that `make demo` and all tests build each image once. The builder's locks make that
safe between processes, those of pytest-xdist included.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import platformdirs
import pytest
from hypothesis import HealthCheck, settings

from airlock_store.paths import default_root

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airlock_store.image import Image
    from airlock_store.store import Store

# The machine may be busy with virtual machines: how long an example takes says nothing.
settings.register_profile("airlock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("airlock")

COMMAND = Path(sys.executable).with_name("airlock")
TIMEOUT = 300.0
"""Seconds after which a command counts as hung, on a slow and busy machine too. No test measures with it."""

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "newuidmap": "uidmap",
    "dockerd": "docker.io",
}


class Airlock(Protocol):
    """Runs `airlock` with arguments, to its end."""

    def __call__(
        self,
        *arguments: str,
        cwd: Path | None = None,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]: ...


@pytest.fixture(scope="session", autouse=True)
def _home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the developer has in his config is not for tests, nor is what airlock remembers of theirs for him.

    The store stays, and the verdict on hardware acceleration, which takes a boot to find.
    """
    kept = {"AIRLOCK_STORE": default_root(os.environ), "XDG_CACHE_HOME": platformdirs.user_cache_path()}
    own = {"HOME": tmp_path_factory.mktemp("home"), "XDG_STATE_HOME": tmp_path_factory.mktemp("state")}
    os.environ.update({name: os.fspath(path) for name, path in (kept | own).items()})


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A run in the background of a shell inherits SIGINT as ignored, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def need() -> Callable[[str], Path]:
    """Finds a program; a test whose program is missing fails with the package that has it."""

    def find(program: str) -> Path:
        found = shutil.which(program)
        if found is None:
            pytest.fail(
                f"{program} is missing: install the package {PACKAGES.get(program, program)}", pytrace=False
            )
        return Path(found)

    return find


@pytest.fixture(scope="session")
def store() -> Store:
    """The user's default store."""
    from airlock_store.store import Store

    return Store.open(os.environ)


@pytest.fixture(scope="session")
def base_image(store: Store) -> Image:
    """The image of the recipe `base`, built if the store lacks it."""
    from airlock_builder.build import build, plan
    from airlock_store.image import load_image

    return load_image(build(plan("base"), store).image.path)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project whose sandbox is small."""
    (tmp_path / "airlock.toml").write_text('[vm]\nimage = "base"\nmemory = "512 MB"\ncpus = 1\n')
    return tmp_path


@pytest.fixture(scope="session")
def airlock() -> Airlock:
    """The installed command, without a terminal. `env` comes on top of the environment."""
    if not COMMAND.exists():
        pytest.fail(f"{COMMAND} is missing: run `make setup`", pytrace=False)

    def run(
        *arguments: str,
        cwd: Path | None = None,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        process = subprocess.Popen(
            [COMMAND, *arguments],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(input, timeout=TIMEOUT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
