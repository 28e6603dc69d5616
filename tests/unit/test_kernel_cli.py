"""`airlock kernel`, as far as it goes without a kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airlock.cli import run
from airlock_builder.features import load_configs
from airlock_builder.kernel import check as check_module
from airlock_builder.kernel.check import Checked
from airlock_builder.kernel.dotconfig import parse_config
from airlock_builder.kernel.verify import Verdict
from airlock_builder.kernel.wanted import Asked, Wanted
from airlock_builder.lookup import shipped

RECIPE = """
[recipe]
name = "mine"
[kernel]
provider = "compiled"
features = ["docker"]
options = { LOG_BUF_SHIFT = 15, FUTEX = "n" }
"""


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return path


def test_features(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernel", "features"]) == 0
    known = load_configs(shipped("kernel-configs")).features
    heads, *rows = capsys.readouterr().out.splitlines()
    assert heads.split() == ["NAME", "INCLUDES", "SUMMARY"]
    assert [row.split()[0] for row in rows] == list(known)
    assert all(feature.summary in row for row, feature in zip(rows, known.values(), strict=True))
    assert run(["kernel", "features", "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == list(known)


def test_render_is_a_config_that_says_who_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernel", "render", "./mine.toml"]) == 0
    out = capsys.readouterr().out
    config = parse_config(out, Path("out"))
    assert (config["NFT_COMPAT"], config["LOG_BUF_SHIFT"], config["FUTEX"]) == ("y", "15", "n")
    before = dict(zip(out.splitlines()[1::2], out.splitlines()[::2], strict=True))
    source = (shipped("kernel-configs") / "tun.config.j2").read_text().splitlines()
    assert before["CONFIG_TUN=y"] == f"# sandbox (tun.config.j2:{source.index('CONFIG_TUN=y') + 1})"
    assert before["CONFIG_LOG_BUF_SHIFT=15"] == "# the recipe (mine.toml:7)"
    decided, overruled = before["# CONFIG_FUTEX is not set"].split(", ")
    assert decided == "# the recipe (mine.toml:7)"
    assert overruled.startswith("minimal (base.config.j2:") and overruled.endswith("): y")


def test_render_for_another_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernel", "render", "./mine.toml", "--arch", "aarch64", "--json"]) == 0
    options = {each["option"]: each for each in json.loads(capsys.readouterr().out)}
    assert "PVH" not in options
    assert options["SERIAL_AMBA_PL011"]["asked"][0]["by"] == "minimal"


def test_without_a_recipe_the_projects_kernel(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "airlock.toml").write_text('[vm]\nimage = "./mine.toml"\n')
    assert run(["kernel", "render"]) == 0
    assert "CONFIG_LOG_BUF_SHIFT=15" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"docker"', '"dokcer"', "mine.toml:6:13: no kernel feature is named 'dokcer'"),
        ("FUTEX =", "CONFIG_FUTEX =", "'CONFIG_FUTEX' is not the name of an option"),
        ('FUTEX = "n"', 'FUTEX = "no"', "'no' is not a value"),
        ('FUTEX = "n"', 'FUTEX = "m"', "have no modules"),
        ('FUTEX = "n"', "FUTEX = true", "mine.toml:7:33: 'FUTEX': expected a string or an integer"),
        (
            'provider = "compiled"',
            'provider = "debian"\nversion = "6.12"',
            "version is for a kernel that is compiled",
        ),
        (
            'provider = "compiled"',
            'provider = "compiled"\nversion = "6"',
            "'6' is not the version of a kernel",
        ),
        ('provider = "compiled"', 'provider = "kernel.org"', "expected one of 'debian', 'compiled'"),
    ],
)
def test_what_is_wrong_in_a_recipe(
    recipe: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    assert old in RECIPE
    recipe.write_text(RECIPE.replace(old, new))
    assert run(["kernel", "render", "./mine.toml"]) == 2
    assert message in capsys.readouterr().err


def test_an_image_without_the_sandbox_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(RECIPE.replace('"docker"', '"minimal"'))
    assert run(["build", "./mine.toml"]) == 2
    assert "mine.toml:6:1: none of these features includes 'sandbox'" in capsys.readouterr().err


def verdict(option: str, found: str, state: str, reason: str = "") -> Verdict:
    return Verdict(Wanted(option, "y", (Asked("y", "docker", "a.config.j2:3"),)), found, state, reason)  # type: ignore[arg-type]


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    found: list[Verdict] = [verdict("A", "y", "ok"), verdict("B", "n", "waived", "not missed")]

    def check(*_: object) -> Checked:
        return Checked(tuple(found), "6.12.1-test")

    monkeypatch.setattr(check_module, "check_kernel", check)
    return found


def test_check_prints_a_table(verdicts: list[Verdict], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernel", "check", "./mine.toml"]) == 0
    captured = capsys.readouterr()
    heads, *rows = captured.out.splitlines()
    assert heads.split() == ["OPTION", "WANTED", "FOUND", "VERDICT", "FOR"]
    assert rows[0].split() == ["CONFIG_A", "y", "y", "ok", "docker", "(a.config.j2:3)"]
    assert rows[2] == "CONFIG_B: not missed"
    assert captured.err == "6.12.1-test: 2 of 2 options as asked for or waived\n"


def test_check_fails_for_a_lost_option(verdicts: list[Verdict], capsys: pytest.CaptureFixture[str]) -> None:
    verdicts.append(verdict("C", "n", "lost", "it depends on D (=n)"))
    assert run(["kernel", "check", "./mine.toml", "-q"]) == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    _heads, row, reason = captured.out.splitlines()
    assert row.split()[:4] == ["CONFIG_C", "y", "n", "lost"]
    assert reason == "CONFIG_C: it depends on D (=n)"
    assert run(["kernel", "check", "./mine.toml", "--json"]) == 1
    options = json.loads(capsys.readouterr().out)["options"]
    assert options[2] == {
        "option": "C", "wanted": "y", "found": "n", "verdict": "lost", "reason": "it depends on D (=n)",
        "by": "docker", "at": "a.config.j2:3",
    }  # fmt: skip
