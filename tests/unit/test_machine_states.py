"""Saved states on disk: found by key, verified, private, bounded; whatever is wrong with one, it is not used."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock_runner.machine import states as module
from airlock_runner.machine.argv import MachineSpec, Share
from airlock_runner.machine.states import StateError, States, digest_sparse, state_key
from airlock_store.image import Image

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1024**2
KEY = "k" * 32
IMAGE = Image(
    path=Path("/store/x-base"), key="x" * 32, name="base", summary="", arch="x86_64", kernel=Path("/k"),
    kernel_release="6", initrd=Path("/i"), rootfs=Path("/r"), rootfs_format="ext4", rootfs_key="r",
)  # fmt: skip


def make(states: States, key: str = KEY, data: bytes = b"ram", image: Path = IMAGE.path) -> None:
    with states.making(key) as draft:
        assert draft is not None
        draft.ram.touch(0o600)
        os.truncate(draft.ram, MIB)
        with draft.ram.open("r+b") as file:
            file.seek(MIB // 2)
            file.write(data)
        draft.device.write_bytes(b"device")
        (draft.scratch / "disk.img").write_bytes(b"x" * MIB)
        states.keep(key, draft, {"kernel": "6.12"}, image)


@pytest.fixture
def states(tmp_path: Path) -> States:
    return States(tmp_path / "states")


def test_a_state_is_found_whole(states: States, tmp_path: Path) -> None:
    assert states.find(KEY, MIB) is None
    make(states)
    saved = states.find(KEY, MIB)
    assert saved is not None
    saved.verify()
    assert saved.ready == {"kernel": "6.12"}
    # QEMU reads from where the descriptor stands, and may do so while every byte is verified.
    assert os.read(saved.device, 100) == b"device"
    saved.close()
    assert sorted(path.name for path in (tmp_path / "states" / KEY).iterdir()) == [
        "device",
        "ram",
        "state.json",
    ]
    assert [path.name for path in (tmp_path / "states").iterdir()] == [KEY]


def test_what_was_verified_is_believed_until_it_is_touched(
    states: States, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(verify: bool = False) -> bool:
        saved = states.find(KEY, MIB)
        assert saved is not None
        known = saved.known()
        if verify:
            saved.verify()
        saved.close()
        return known

    make(states)
    # Files that may yet be changed within the same tick of the clock are not believed.
    assert [found(verify=True), found()] == [False, False]
    monkeypatch.setattr(module, "_TICK", -1)
    assert [found(verify=True), found(), found()] == [False, True, True]
    ram = tmp_path / "states" / KEY / "ram"
    before = ram.stat()
    flip(ram, MIB // 2)
    os.utime(ram, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not found()
    with pytest.raises(StateError, match="digest"):
        found(verify=True)
    flip(ram, MIB // 2)
    assert [found(verify=True), found()] == [False, True]
    # Another boot of the host.
    note = tmp_path / "states" / KEY / "verified"
    note.write_text(note.read_text().replace("-", "0", 1))
    assert not found()


def test_a_state_that_is_deleted_while_it_is_open_stays_good(states: States) -> None:
    make(states)
    saved = states.find(KEY, MIB)
    assert saved is not None
    states.drop(KEY)
    saved.verify()
    saved.close()
    assert states.find(KEY, MIB) is None


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda at: flip(at / "ram", MIB // 2),
        lambda at: flip(at / "ram", 0),
        lambda at: flip(at / "device", 3),
        lambda at: os.truncate(at / "device", 3),
        lambda at: (at / "device").write_bytes(b""),
    ],
    ids=["a bit of RAM", "a hole of RAM", "a bit of device state", "cut short", "empty"],
)
def test_damage_is_seen_by_verifying(
    states: States, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    make(states)
    damage(tmp_path / "states" / KEY)
    saved = states.find(KEY, MIB)
    assert saved is not None
    with pytest.raises(StateError, match="digest"):
        saved.verify()
    saved.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda at: os.truncate(at / "ram", MIB - 1),
        lambda at: (at / "state.json").write_text("{"),
        lambda at: (at / "state.json").write_text("[]"),
        lambda at: (at / "ram").chmod(0o644),
        lambda at: (at / "ram").unlink() or (at / "ram").symlink_to("/etc/passwd"),
        lambda at: at.chmod(0o755),
    ],
    ids=["short RAM", "no JSON", "a list", "others may read it", "a link", "others may enter"],
)
def test_damage_that_is_seen_at_once(
    states: States, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    make(states)
    damage(tmp_path / "states" / KEY)
    assert states.find(KEY, MIB) is None


def test_only_one_process_makes_a_state(states: States) -> None:
    with states.making(KEY) as first:
        assert first is not None
        with States(states._root).making(KEY) as second:
            assert second is None
    with states.making(KEY) as again:
        assert again is not None


def test_what_is_not_kept_leaves_nothing(states: States, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), states.making(KEY) as draft:
        assert draft is not None
        draft.ram.write_bytes(b"x")
        raise KeyboardInterrupt
    assert list((tmp_path / "states").iterdir()) == []


def test_what_a_killed_process_left_is_swept(states: States, tmp_path: Path) -> None:
    left = tmp_path / "states" / ".new-left"
    left.mkdir(parents=True)
    (left / "ram").write_bytes(b"x" * MIB)
    with states.making("other") as held:
        assert held is not None
        make(states)
        assert held.directory.is_dir()
    assert not left.exists()


def test_a_full_disk_is_an_error(states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_FREE", 1 << 62)
    with pytest.raises(StateError, match="too little free disk space"), states.making(KEY):
        pass


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    states = States(tmp_path, limit=3 * MIB)
    data = os.urandom(MIB // 2)
    for number in range(6):
        make(states, f"key{number}", data)
        os.utime(tmp_path / f"key{number}", (number, number))
    # Using one makes it the youngest.
    oldest = states.find("key2", MIB) or states.find("key3", MIB)
    assert oldest is not None
    oldest.close()
    make(states, "new", data)
    assert states.size() <= 3 * MIB
    assert states.find("new", MIB) is not None
    assert states.find(oldest.key, MIB) is not None
    assert states.find("key0", MIB) is None


def test_states_go_with_their_image(states: States) -> None:
    make(states, "one", image=Path("/store/one"))
    make(states, "two", image=Path("/store/two"))
    assert states.prune([Path("/store/two")]) > 0
    assert states.find("one", MIB) is None
    assert states.find("two", MIB) is not None
    states.prune()
    assert states.find("two", MIB) is None


def test_a_state_in_the_making_is_nobodys_to_remove(states: States, tmp_path: Path) -> None:
    left = tmp_path / "states" / ".new-left"
    with states.making(KEY) as draft:
        assert draft is not None
        left.mkdir()
        (left / "ram").write_bytes(b"x" * MIB)
        assert States(states._root).prune() >= MIB
        assert draft.scratch.is_dir()
    assert not left.exists()


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    qemu = tmp_path / "qemu"
    qemu.write_bytes(b"qemu")
    return MachineSpec(
        qemu=qemu, arch="x86_64", accelerator="tcg", cpus=2, memory=512 * MIB, kernel=Path("/k"), initrd=Path("/i"),
        rootfs=Path("/r"), rootfs_format="ext4", disk=Path("/p/disk.img"), shares=(Share("project", Path("/p")),),
    )  # fmt: skip


def test_a_project_does_not_change_the_key(spec: MachineSpec) -> None:
    other = replace(spec, disk=Path("/q/disk.img"), shares=(Share("project", Path("/q")),))
    assert state_key(IMAGE, spec) == state_key(IMAGE, other)


@pytest.mark.parametrize(
    "change",
    [
        {"cpus": 1},
        {"memory": 256 * MIB},
        {"accelerator": "kvm"},
        {"shares": ()},
        {"shares": (Share("project", Path("/p")), Share("more", Path("/m")))},
        {"sandboxed": False},
    ],
    ids=str,
)
def test_the_shape_does(spec: MachineSpec, change: dict[str, object]) -> None:
    assert state_key(IMAGE, spec) != state_key(IMAGE, replace(spec, **change))  # type: ignore[arg-type]


def test_image_qemu_and_host_do(spec: MachineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_key(IMAGE, spec)
    assert before != state_key(replace(IMAGE, key="y" * 32), spec)
    spec.qemu.write_bytes(b"another qemu")
    after = state_key(IMAGE, spec)
    assert before != after
    monkeypatch.setattr(module, "_host_cpu", lambda: "another CPU")
    assert after != state_key(IMAGE, spec)


def test_a_kernel_that_is_not_the_images_does(spec: MachineSpec, tmp_path: Path) -> None:
    own = tmp_path / "vmlinux"
    own.write_bytes(b"kernel")
    before = state_key(IMAGE, replace(spec, kernel=own))
    assert before != state_key(IMAGE, spec)
    assert before != state_key(IMAGE, replace(spec, initrd=own))
    own.write_bytes(b"another kernel")
    assert before != state_key(IMAGE, replace(spec, kernel=own))


@given(
    st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=5000)), max_size=5),
    st.integers(0, 1),
)
def test_the_digest_is_of_the_content(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, bytes]], change: int
) -> None:
    path = tmp_path_factory.mktemp("sparse") / "file"
    path.touch()
    os.truncate(path, 64 * 4096)
    with path.open("r+b") as file:
        for page, data in writes:
            file.seek(page * 4096)
            file.write(data)
    with path.open("rb") as file:
        before = digest_sparse(file.fileno())
        assert before == digest_sparse(file.fileno())
    if change and writes:
        flip(path, writes[0][0] * 4096)
        with path.open("rb") as file:
            assert digest_sparse(file.fileno()) != before


def test_the_digest_is_of_the_places_too(tmp_path: Path) -> None:
    digests = set()
    for page in (0, 1, 7):
        path = tmp_path / str(page)
        with path.open("w+b") as file:
            os.truncate(file.fileno(), 8 * 65536)
            os.pwrite(file.fileno(), b"x" * 65536, page * 65536)
            digests.add(digest_sparse(file.fileno()))
    assert len(digests) == 3
