"""Image manifests: written, read back, and refused when they are not what they should be."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from airlock import images
from airlock_store.errors import ConfigError, StoreError
from airlock_store.image import MANIFEST, Image, VmDefaults, encode_image, load_image
from airlock_store.store import Store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def image(tmp_path: Path) -> Image:
    for name in ("kernel", "initrd", "rootfs.ext4"):
        (tmp_path / name).write_text(name)
    image = Image(
        path=tmp_path,
        key="0" * 32,
        name="base",
        summary="An image – of its own",
        arch="x86_64",
        kernel=tmp_path / "kernel",
        kernel_release="6.12.117+deb13-amd64",
        initrd=tmp_path / "initrd",
        rootfs=tmp_path / "rootfs.ext4",
        rootfs_format="ext4",
        rootfs_key="1" * 32,
        features=("sandbox", "docker"),
        kernel_options=MappingProxyType({"EXT4_FS": "y", "LOCALVERSION": '"-airlock"'}),
        vm=VmDefaults(memory=1 << 30, cpus=2, harden=False, command=("/bin/sh", "-l"), user="agent"),
        env=MappingProxyType({"A": "b=c"}),
    )
    (tmp_path / MANIFEST).write_bytes(encode_image(image))
    return image


def test_a_name_is_no_directory_of_the_project(image: Image, tmp_path: Path) -> None:
    """A sandbox could have put an image of its own there, for the next start."""
    store = Store(tmp_path / "store")
    assert images.stored(image.path.name, store, image.path.parent) is None
    assert images.stored(f"./{image.path.name}", store, image.path.parent) == image
    with pytest.raises(ConfigError, match="no such user"):
        images.stored("~nosuchuser/image", store, tmp_path)


def test_read_back(image: Image) -> None:
    assert load_image(image.path) == image


def test_nothing_said_of_the_machine(image: Image) -> None:
    change(image.path, lambda fields: fields.update(vm={"command": []}))
    assert load_image(image.path).vm == VmDefaults()


def test_an_image_of_old_promises_no_options(image: Image) -> None:
    change(image.path, lambda fields: fields.pop("kernel_options"))
    assert load_image(image.path).kernel_options == {}


def change(path: Path, edit: Any) -> None:
    fields = json.loads((path / MANIFEST).read_bytes())
    edit(fields)
    (path / MANIFEST).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda fields: fields.update(schema=2), "schema 2 is not known"),
        (lambda fields: fields.update(schema=True), "schema should be int"),
        (lambda fields: fields.pop("schema"), "schema should be a number"),
        (lambda fields: fields.update(kernel="../kernel"), "kernel should be the name of a file"),
        (lambda fields: fields.update(kernel="/etc/passwd"), "kernel should be the name of a file"),
        (lambda fields: fields.update(initrd="missing"), "initrd should be the name of a file"),
        (lambda fields: fields.update(rootfs=["rootfs.ext4"]), "rootfs should be a string"),
        (lambda fields: fields.update(arch="riscv64"), "arch should be one of x86_64, aarch64"),
        (lambda fields: fields.update(rootfs_format="xfs"), "rootfs_format should be one of ext4"),
        (lambda fields: fields.pop("rootfs_key"), "rootfs_key should be a string"),
        (lambda fields: fields.update(features="all"), "features should be a list of strings"),
        (lambda fields: fields.update(kernel_options=["A"]), "kernel_options should be an object"),
        (lambda fields: fields.update(kernel_options={"A": 1}), "kernel_options.A should be a string"),
        (lambda fields: fields.update(vm=None), "vm should be an object"),
        (lambda fields: fields["vm"].update(memory="1 GB"), "vm.memory should be int or null"),
        (lambda fields: fields["vm"].update(cpus=True), "vm.cpus should be int or null"),
        (lambda fields: fields["vm"].update(harden=1), "vm.harden should be bool or null"),
        (lambda fields: fields["vm"].update(command=[1]), "vm.command should be a list of strings"),
        (lambda fields: fields["vm"].update(user=1000), "vm.user should be str or null"),
        (lambda fields: fields["vm"].update(user="a\x1b[2J"), "vm.user should be a user's name or number"),
        (lambda fields: fields.update(env={"A": 1}), "env.A should be a string"),
    ],
)
def test_damage_is_told(image: Image, edit: Any, message: str) -> None:
    change(image.path, edit)
    with pytest.raises(StoreError, match=message) as caught:
        load_image(image.path)
    assert caught.value.hint


def test_a_link_is_no_file_of_the_image(image: Image) -> None:
    image.kernel.unlink()
    image.kernel.symlink_to("/etc/passwd")
    with pytest.raises(StoreError, match="kernel should be the name of a file"):
        load_image(image.path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 60_000], ids=lambda text: text[:9])
def test_no_manifest(tmp_path: Path, text: str) -> None:
    with pytest.raises(StoreError):
        load_image(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(StoreError, match=MANIFEST if text == "[]" else "not an image"):
        load_image(tmp_path)
