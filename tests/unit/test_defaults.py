"""Where a command starts, by where we are and what was asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airlock_runner.config import ProjectConfig
from airlock_runner.config.model import VmConfig
from airlock_runner.defaults import CommandDefaults, working_directory
from airlock_store.image import Image, VmDefaults


@pytest.mark.parametrize(
    ("ours", "chosen", "there"),
    [
        ("project", None, "project"), ("project/a", None, "project/a"), ("other", None, "project"),
        ("projector", None, "project"), ("project/a", "b", "project/a/b"), ("project/a", "..", "project/a/.."),
        ("other", "b", "project/b"), ("project/a", "/usr", "/usr"),
    ],
)  # fmt: skip
def test_a_command_starts_here_where_that_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: str, chosen: str | None, there: str
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / ours).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / ours)
    assert working_directory(tmp_path / "project", chosen) == os.fspath(tmp_path / there)


@pytest.mark.parametrize(
    ("image", "config", "user"), [(None, None, "root"), ("agent", None, "agent"), ("agent", "root", "root")]
)
def test_the_projects_user_is_over_the_images(image: str | None, config: str | None, user: str) -> None:
    made = Image(
        path=Path("/store/x-base"), key="x" * 32, name="base", summary="", arch="x86_64", kernel=Path("/k"),
        kernel_release="6", initrd=Path("/i"), rootfs=Path("/r"), rootfs_format="ext4", rootfs_key="r",
        vm=VmDefaults(user=image),
    )  # fmt: skip
    assert CommandDefaults.of(made, ProjectConfig(vm=VmConfig(user=config))).user == user
