"""The layers of a config: which files count, how they merge, what is said about all of them at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock.cli import run
from airlock_runner.config import find_config, fingerprint, load_config, place_of
from airlock_runner.config.effective import settings
from airlock_runner.config.layers import MAX_PRESETS, read_layers
from airlock_runner.config.variables import UndefinedVariableError, check_references, expand
from airlock_store.document import Document, merge
from airlock_store.errors import ConfigError
from airlock_store.sizes import GIB, MIB


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home."""
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", os.fspath(path))
    return path


@pytest.fixture
def root(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, and the directory in which airlock runs."""
    path = tmp_path / "project"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problems(root: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(root, {}.get)
    return str(caught.value).splitlines()


def test_later_layers_win_and_tables_merge(home: Path, root: Path) -> None:
    put(home / ".airlock/presets/small.yaml", "vm: {cpus: 1, memory: 256 MB}\nenv: {FROM: preset, P: '1'}\n")
    put(home / ".airlock/config.json", '{"vm": {"memory": "300 MB"}, "env": {"FROM": "user", "U": "1"}}')
    put(root / "airlock.toml", 'presets = ["small"]\n[vm]\nimage = "base"\n[env]\nFROM = "project"\n')
    put(root / "airlock.local.yml", "vm:\n  memory: 400 MB\n  image: ~\nenv: {FROM: local}\n")
    config = load_config(root)
    assert (config.vm.image, config.vm.cpus, config.vm.memory) == ("base", 1, 400 * MIB)
    assert config.env == {"P": "1", "U": "1", "FROM": "local"}
    assert [slot.path.name for slot in read_layers(root).slots] == [
        "small.yaml", "config.json", "airlock.toml", "airlock.local.yml",
    ]  # fmt: skip


def test_arrays_append_across_layers_and_a_preset_counts_once(home: Path, root: Path) -> None:
    for name in "ab":
        put(home / f".airlock/presets/{name}.toml", f'[env]\nLAST = "{name}"\n')
    put(home / ".airlock.toml", 'presets = ["a"]')
    put(root / "airlock.toml", 'presets = ["b", "a"]')
    config = load_config(root)
    assert config.presets == ("a", "b", "a")
    assert config.env == {"LAST": "b"}


@pytest.mark.parametrize("stem", ["airlock", "airlock.local"])
def test_the_first_spelling_of_a_slot_is_read(root: Path, stem: str) -> None:
    texts = {
        "toml": '[disk]\nsize = "1 GB"',
        "json": '{"disk": {"size": "2 GB"}}',
        "yaml": "disk: {size: 3 GB}",
        "yml": "disk: {size: 4 GB}",
    }
    paths = [put(root / f"{stem}.{suffix}", text) for suffix, text in texts.items()]
    for size, path in enumerate(paths, start=1):
        assert load_config(root).disk.size == size * GIB
        assert find_config(root) == path
        assert read_layers(root).slots[0].ignored == tuple(paths[size:])
        path.unlink()
    assert find_config(root) is None


@pytest.mark.parametrize("stem", ["config", "../.airlock", "presets/mine"])
def test_so_it_is_with_the_slots_of_the_home(home: Path, root: Path, stem: str) -> None:
    texts = {
        "toml": '[env]\nA = "toml"',
        "json": '{"env": {"A": "json"}}',
        "yaml": "env: {A: yaml}",
        "yml": "env: {A: yml}",
    }
    put(root / "airlock.toml", 'presets = ["mine"]' if stem.startswith("presets") else "")
    (home / ".airlock").mkdir()
    paths = [put(home / ".airlock" / f"{stem}.{suffix}", text) for suffix, text in texts.items()]
    for path in paths:
        assert load_config(root).env == {"A": path.suffix.removeprefix(".")}
        path.unlink()


def test_the_users_directory_comes_before_the_users_file(home: Path, root: Path) -> None:
    put(home / ".airlock.toml", '[env]\nA = "file"')
    assert load_config(root).env == {"A": "file"}
    put(home / ".airlock/config.yml", "env: {A: directory}")
    assert load_config(root).env == {"A": "directory"}


def test_all_problems_of_all_files_are_told_at_once(home: Path, root: Path) -> None:
    user = put(home / ".airlock.yaml", "vm:\n  memroy: 1 GB\n  cpus: many\n")
    project = put(root / "airlock.toml", '[vm]\ncpus = 0\n[disk]\nsiez = "1 GB"\n')
    local = put(root / "airlock.local.json", '{"vm": {"cpus": 2},\n "env": {"A": 1}}')
    assert problems(root) == [
        f"{user}:2:3: unknown key 'memroy' in [vm]",
        f"{user}:3:3: 'cpus': expected an integer, found a string",
        f"{project}:2:1: 'cpus': a VM has 1 to 255 CPUs, found 0",
        f"{project}:4:1: unknown key 'siez' in [disk]",
        f"{local}:2:10: 'A': expected a string, found an integer",
    ]


def test_a_file_that_cannot_be_parsed_does_not_hide_what_is_wrong_in_another(root: Path) -> None:
    project = put(root / "airlock.toml", "[vm\n")
    local = put(root / "airlock.local.yaml", "vn: {}")
    found = problems(root)
    assert found[0].startswith(f"{project}:1:4: not valid TOML")
    assert found[1:] == [f"{local}:1:1: unknown key 'vn' at the top level"]


def test_what_is_wrong_below_another_layer_is_wrong(root: Path) -> None:
    project = put(root / "airlock.toml", "vm = 3")
    put(root / "airlock.local.toml", "[vm]\ncpus = 1")
    assert problems(root) == [f"{project}:1:1: 'vm': expected a table, found an integer"]


@pytest.mark.parametrize("name", ["none", "../config", "a/b", "", ".hidden", "x" * 65])
def test_a_preset_that_is_not_there_is_an_error_at_its_name(home: Path, root: Path, name: str) -> None:
    put(home / ".airlock/config.toml", "")
    put(home / ".airlock/presets/a/b.toml", "")
    put(home / ".airlock/presets/.hidden.toml", "")
    path = put(root / "airlock.toml", f"presets = [\n  '{name}',\n]")
    assert problems(root) == [f"{path}:2:3: there is no preset {name!r}"]


def test_presets_are_bounded_and_not_nested(home: Path, root: Path) -> None:
    names = [f"p{number}" for number in range(MAX_PRESETS + 1)]
    for name in names:
        put(home / f".airlock/presets/{name}.toml", "")
    path = put(root / "airlock.json", json.dumps({"presets": names}))
    assert f"more than {MAX_PRESETS} presets" in problems(root)[0]
    put(root / "airlock.json", '{"presets": ["p0"]}')
    nested = put(home / ".airlock/presets/p0.toml", 'presets = ["p1"]')
    assert problems(root) == [f"{nested}:1:1: a preset has no presets of its own"]
    assert path.exists()


def test_a_fifo_in_the_place_of_a_config_holds_nobody_up(root: Path) -> None:
    os.mkfifo(root / "airlock.local.toml")
    assert problems(root) == [f"{root / 'airlock.local.toml'}: not a regular file"]


def test_a_change_of_a_config_file_cannot_be_hidden_by_its_time(root: Path) -> None:
    path = put(root / "airlock.toml", "[vm]\n")
    before = fingerprint(root)
    assert fingerprint(root) == before == {"airlock.toml": before["airlock.toml"]}
    status = path.stat()
    path.write_text("[en]\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert fingerprint(root) != before
    put(root / "airlock.local.yml", "")
    put(root / "other.toml", "")
    assert set(fingerprint(root)) == {"airlock.toml", "airlock.local.yml"}


def test_a_user_without_a_home_has_no_layers_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    path = put(root / "airlock.toml", "[env]\nA = '1'")
    assert load_config(root).env == {"A": "1"}
    put(path, "presets = ['a']")
    assert problems(root) == [f"{path}:1:12: there is no preset 'a'"]


def test_a_place_is_found_in_the_layer_that_decides(root: Path) -> None:
    put(root / "airlock.toml", "[vm]\nimage = 'a'")
    local = put(root / "airlock.local.yaml", "vm:\n   image: b")
    at = place_of(root, "vm", "image")
    assert (at.path, at.line, at.column) == (local, 2, 4)


VALUES = st.recursive(
    st.none() | st.integers(0, 3),
    lambda each: st.lists(each, max_size=2) | st.dictionaries(st.sampled_from("ab"), each),
)
TABLES = st.dictionaries(st.sampled_from("abc"), VALUES)


@given(TABLES, TABLES)
def test_null_never_overwrites(base: dict[str, object], over: dict[str, object]) -> None:
    here = Path("x")
    nulls = dict.fromkeys(over)
    assert merge(Document(base, here), Document(nulls, here)).data == {**nulls, **base}
    assert merge(Document(nulls, here), Document(over, here)).data == over


# ---- variables


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "1"), ("x${A}y${A}", "x1y1"), ("${A:2}", "1"), ("${N:2}", "2"), ("${N:}", ""), ("${E}", ""),
        ("${E:2}", ""), ("${N:a:b}", "a:b"), ("$$", "$"), ("$${A}", "${A}"), ("$$$${A}", "$${A}"),
        ("$$${A}", "$1"), ("$A $ 5$", "$A $ 5$"), ("}{", "}{"), ("${N:$$}", "$$"), ("${R}", "${A}$$"), ("", ""),
    ],
)  # fmt: skip
def test_references_are_replaced_once(text: str, value: str) -> None:
    assert expand(text, {"A": "1", "E": "", "R": "${A}$$"}.get) == value
    check_references(text)


@pytest.mark.parametrize(
    "text", ["${", "${A", "${A:b", "${}", "${:b}", "${1}", "${A B}", "${A:${B}}", "${é}"]
)
def test_what_begins_like_a_reference_is_one_or_an_error(text: str) -> None:
    for wrong in (text, f"${{A}}{text}"):
        with pytest.raises(ValueError, match=r"\$|reference"):
            check_references(wrong)


@given(st.text(st.sampled_from("${}A:x1")))
def test_whatever_the_check_accepts_expands_or_names_a_variable(text: str) -> None:
    try:
        check_references(text)
    except UndefinedVariableError:
        raise
    except ValueError:
        return
    try:
        expand(text, {}.get)
    except UndefinedVariableError as error:
        assert f"${{{error.variable}}}" in text


@given(st.text())
def test_two_dollars_protect_any_text(text: str) -> None:
    assert expand(text.replace("$", "$$"), {}.get) == text


def test_undefined_variables_are_told_with_file_key_and_name(root: Path) -> None:
    project = put(root / "airlock.toml", '[env]\nA = "${ONE}"\nB = "${TWO:2}"\n')
    local = put(root / "airlock.local.yaml", "env:\n  C: x${THREE}")
    assert problems(root) == [
        f"{project}:2:1: 'A': the variable ONE is not defined",
        f"{local}:2:3: 'C': the variable THREE is not defined",
    ]
    assert load_config(root, {"ONE": "1", "THREE": "3"}.get).env == {"A": "1", "B": "2", "C": "x3"}


def test_what_the_whole_lacks_is_told_together(home: Path, root: Path) -> None:
    """What no file alone can be blamed for: all of it, each at its place."""
    user = put(home / ".airlock.toml", '[mounts.m]\ntarget = "/m"\n[env]\nU = "${ONE}"\n')
    project = put(
        root / "airlock.toml",
        "[daemons.a]\ncommand = ['a']\nafter = ['b', 'none']\nready = { log = 'up' }\n[daemons.a.env]\nD = '${TWO}'\n"
        "[daemons.b]\ncommand = ['b']\nafter = ['a']\n[daemons.c]\n"
        "[daemons.off]\nenabled = false\nafter = ['none']\nenv = { X = '${THREE}' }\n",
    )
    said = problems(root)
    assert said == [
        f"{user}:1:9: missing key 'source' in [mounts.m]",
        f"{project}:10:10: missing key 'command' in [daemons.c]",
        f"{project}:3:15: daemon a is to start after 'none', which is none",
        f"{project}:3:1: daemons wait for each other in a circle: {said[3].rpartition(': ')[2]}",
        f"{user}:4:1: 'U': the variable ONE is not defined",
        f"{project}:6:1: 'D': the variable TWO is not defined",
    ]


def test_every_circle_of_daemons_is_told(root: Path) -> None:
    daemon = "[daemons.{0}]\ncommand = ['x']\nafter = ['{1}']\n"
    waits = {"a": "b", "b": "a", "z": "z", "c": "d", "d": "c", "e": "f', 'g", "f": "e", "g": "e"}
    path = put(root / "airlock.toml", "".join(daemon.format(*each) for each in waits.items()))
    said = [line.partition(":1: daemons wait for each other in a circle: ") for line in problems(root)]
    circles = [circle.split(" → ") for _, _, circle in said]
    assert sorted("".join(sorted(set(circle))) for circle in circles) == ["ab", "cd", "ef", "eg", "z"]
    order = list(waits)
    assert [place for place, _, _ in said] == [f"{path}:{3 * order.index(each[0]) + 3}" for each in circles]


def test_every_element_that_is_wrong_is_told_at_its_place(root: Path) -> None:
    path = put(
        root / "airlock.toml",
        "[mask.m]\npaths = ['/a', 'fine',\n  '../b']\n[network.ports.p]\nhost = [0, 80, '1-2']\n"
        "[network.rules.r]\nallow = ['a*',\n 'a', 1]\n",
    )
    assert [line.partition(": ")[0].removeprefix(f"{path}:") for line in problems(root)] == [
        "2:10", "3:3", "5:9", "5:16", "7:10", "8:7",
    ]  # fmt: skip


def test_a_value_that_is_too_long_once_put_in_is_told_at_its_place(root: Path) -> None:
    path = put(root / "airlock.toml", '[env]\nA = "${BIG}"\n')
    with pytest.raises(ConfigError, match="too long") as caught:
        load_config(root, {"BIG": "x" * (128 << 10)}.get)
    assert str(caught.value.at) == f"{path}:2:1"


def test_variables_come_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root / "airlock.toml", '[env]\nA = "${AIRLOCK_TEST_VALUE}"\n')
    monkeypatch.setenv("AIRLOCK_TEST_VALUE", "from outside")
    assert load_config(root).env == {"A": "from outside"}


# ---- airlock config


def test_show_tells_each_value_with_its_place(
    home: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(home / ".airlock/presets/p.toml", "[vm]\ncpus = 3\n")
    put(root / "airlock.toml", 'presets = ["p"]\n[vm]\nimage = "base"\nmemory = "1 GB"\n')
    put(root / "airlock.json", "{}")
    put(root / "airlock.local.yaml", 'vm: {memory: 300 MB}\nenv:\n  "a b": "${SECRET}\\e[2J"\n')
    assert run(["config", "show"]) == 0
    assert capsys.readouterr().out == (
        "# ~/.airlock/presets/p.toml\n"
        "# airlock.toml\n"
        "# airlock.json is not read: airlock.toml comes first\n"
        "# airlock.local.yaml\n"
        "presets = [\n"
        '    "p",  # airlock.toml:1\n'
        "]\n"
        "\n[vm]\n"
        'image = "base"  # airlock.toml:3\n'
        "cpus = 3  # ~/.airlock/presets/p.toml:2\n"
        'memory = "300 MB"  # airlock.local.yaml:1\n'
        "# harden: the image's, or true\n"
        "# verify_kernel: true\n"
        "# share: auto\n"
        "# kernel: the image's\n"
        "# initrd: the image's\n"
        "# user: the image's, or root\n"
        "\n[env]\n"
        '"a b" = "${SECRET}\\u001b[2J"  # airlock.local.yaml:3\n'
        "\n[disk]\n"
        "# size: 10 GB\n"
        "\n[network]\n"
        "# policy: allow-by-default\n"
        "# denied_names: resolve\n"
    )


def test_show_has_no_entries_that_are_none(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A null says nothing; and of two ways to be ready that nobody named none is shown as what holds."""
    put(root / "airlock.yaml", "mounts: {m: null}\ndaemons: {d: {command: [x]}}\n")
    assert run(["config", "show"]) == 0
    shown = capsys.readouterr().out
    assert "mounts" not in shown
    assert "ready]" not in shown
    assert 'command = [\n    "x",  # airlock.yaml:2\n]' in shown


def test_show_as_json_has_every_setting_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = put(root / "airlock.local.toml", "[disk]\nsize = '1 GB'\n")
    assert run(["config", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["files"] == [os.fspath(local)]
    by_key = {tuple(each["key"]): each for each in shown["settings"]}
    assert len(by_key) == len(shown["settings"]) == len(settings(Document({}, root)))
    assert by_key["disk", "size"]["from"] == {"file": os.fspath(local), "line": 2, "column": 1}
    assert by_key["vm", "image"] == {
        "key": ["vm", "image"], "value": None, "from": None, "elements": [], "unset": "base",
    }  # fmt: skip


def test_show_refuses_what_start_refuses(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(root / "airlock.yaml", "vm: {memroy: 1 GB}")
    assert run(["config", "show"]) == 2
    assert capsys.readouterr().err == (
        f"Config error: {path}:1:6: unknown key 'memroy' in [vm]\n  hint: did you mean 'memory'?\n"
    )


def test_a_start_from_toml_imports_no_other_format(root: Path) -> None:
    put(root / "airlock.toml", "[vm]\ncpus = 1\n")
    code = """
import sys
from pathlib import Path
from airlock_runner.config import load_config
assert load_config(Path(".")).vm.cpus == 1
print({"yaml", "json", "tomlkit", "difflib", "airlock_runner.config.schema"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
