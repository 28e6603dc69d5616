"""net.log: what is written is read again, also when it is hostile; and the commands of `airlock net`."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock.cli import run
from airlock_runner.config.network_model import NetworkConfig, RuleConfig
from airlock_runner.net import journal as journal_module
from airlock_runner.net.journal import NAME, OLDER, Journal
from airlock_runner.net.network import Network
from airlock_runner.net.patterns import parse_pattern
from airlock_runner.net.reading import Entry, Tail, _parse, connections, learned
from airlock_runner.net.record import Record
from airlock_runner.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with a sandbox, which is the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Project(tmp_path)
    made.prepare()
    return made


def complain(text: str) -> None:
    raise AssertionError(text)


def record(number: int, **values: Any) -> Record:
    return Record(
        **{"id": f"s-{number}", "kind": "tcp", "name": "a.com", "address": "1.2.3.4", "port": 443, **values}
    )


def fill(project: Project, *records: Record, warn: Callable[[str], None] = complain) -> None:
    journal = Journal(project, warn)
    for each in records:
        journal.write(each.values())
    journal.close()


def test_a_connection_is_read_once_with_its_latest_state_at_its_first_time(project: Project) -> None:
    done = record(1, state="closed", sent=3, received=4, seconds=1.5, rule="r: allow a.com")
    fill(project, record(1), record(2, state="denied", verdict="deny"), done)
    first, second = connections(project)
    assert first.record == done
    assert second.record.state == "denied"
    assert first.time <= second.time
    assert first.time.endswith("Z")


def test_the_log_is_bounded_and_its_files_are_read_in_order(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "LIMIT", 2000)
    fill(project, *(record(number) for number in range(100)))
    files = sorted(path.name for path in project.directory.glob(f"{NAME}*"))
    assert files == [NAME, *OLDER]
    assert all((project.directory / name).stat().st_size <= 2000 for name in files)
    numbers = [int(each.record.id.partition("-")[2]) for each in connections(project)]
    assert numbers == list(range(numbers[0], 100))
    assert len(numbers) > 10


def test_a_log_that_cannot_be_written_is_told_once(project: Project, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (project.directory / NAME).symlink_to(outside)
    said: list[str] = []
    fill(project, record(1), record(2), warn=said.append)
    assert len(said) == 1
    assert "not a regular file" in said[0]
    assert not outside.exists()


def test_what_is_written_while_one_looks_is_followed_across_files(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airlock_runner.net.reading.POLL_SECONDS", 0)
    fill(project, record(0))
    tail = Tail(project)
    entries = iter(tail)
    fill(project, record(1))
    assert next(entries).record.id == "s-1"
    with open(project.directory / NAME, "ab") as file:
        half = json.dumps({"time": "t", **record(2).values()}).encode()
        file.write(half[:20])
        file.flush()
        file.write(half[20:] + b"\nnonsense\n")
    assert next(entries).record.id == "s-2"
    fill(project, record(3))
    project.rotate(NAME, *OLDER)
    fill(project, record(4))
    assert [next(entries).record.id for _ in range(2)] == ["s-3", "s-4"]
    tail.close()


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda each: (
            st.lists(each, max_size=2) | st.dictionaries(st.sampled_from([*Record.__slots__, "time"]), each)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_line_is_an_entry_or_nothing(line: bytes) -> None:
    entry = _parse(line)
    assert entry is None or isinstance(entry.record.id, str)


@pytest.mark.parametrize("key", ["seconds", "sent", "received", "count", "port"])
@pytest.mark.parametrize("number", [10**400, -1, float("inf"), float("nan")])
def test_a_number_that_nothing_measured_makes_a_line_none(
    project: Project, capsys: pytest.CaptureFixture[str], key: str, number: float
) -> None:
    fill(project, record(1), record(2, **{key: number}), record(3))
    assert [entry.record.id for entry in connections(project)] == ["s-1", "s-3"]
    assert run(["net", "log"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_lines_of_an_earlier_version_are_read(project: Project) -> None:
    values = record(1).values()
    del values["protocol"], values["count"]
    journal = Journal(project, complain)
    journal.write(values)
    journal.close()
    assert [entry.record for entry in connections(project)] == [record(1)]


def test_rules_are_learned_from_what_was_reached() -> None:
    seen = [
        record(1, state="closed"), record(2, state="closed"), record(3, name="B.com.", state="open"),
        record(4, name=None, address="fd00::1", state="reset"), record(5, name="evil.com", state="denied"),
        record(6, name="gone.com", state="failed"), record(7, kind="port", name=None), record(8, name="0x7f.1"),
        record(9, name='x"\n]', state="closed"), record(10, port=0), record(11, name=None, address=None),
        record(12, name="quic.com", kind="packet", state="refused", verdict="refused"),
    ]  # fmt: skip
    entries = [Entry("t", each) for each in seen]
    assert learned(entries) == ["127.0.0.1:443", "[fd00::1]:443", "a.com:443", "b.com:443"]
    assert "evil.com:443" in learned(entries, denied=True)
    for pattern in learned(entries, denied=True):
        assert parse_pattern(pattern).port == 443


# ---- commands


def test_the_log_is_a_table_with_hostile_text_made_safe(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(
        project,
        record(1, state="closed", sent=10, received=20, seconds=0.5, rule="r: allow a.com"),
        record(2, name="\x1b[2J\nevil", state="denied", verdict="deny", rule="policy deny-by-default"),
        record(4, kind="packet", verdict="refused", state="refused", protocol="udp", count=12),
        record(3, name=None, state="failed", error="ETIMEDOUT"),
    )
    assert run(["net", "log"]) == 0
    head, first, second, packets, third = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["TIME", "CONNECTION", "STATE"]
    assert first.split()[1:] == [
        "s-1",
        "closed",
        "tcp",
        "10",
        "20",
        "0.500",
        "a.com:443",
        "1.2.3.4",
        "r:",
        "allow",
        "a.com",
    ]
    assert "\\x1b[2J evil:443" in second
    assert packets.split()[2:8] == ["refused", "x12", "udp", "-", "-", "0.000"]
    assert "failed ETIMEDOUT" in third
    assert "1.2.3.4:443" in third
    assert run(["net", "log", "--json", "-n", "1"]) == 0
    (only,) = capsys.readouterr().out.splitlines()
    assert json.loads(only)["id"] == "s-3"
    assert run(["net", "log", "-n", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_what_is_learned_is_toml_for_a_config(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["net", "learn"]) == 1
    assert "no connection to learn from" in capsys.readouterr().err
    fill(project, record(1, state="closed"))
    assert run(["net", "learn"]) == 0
    table = tomllib.loads(capsys.readouterr().out)
    assert table == {"network": {"rules": {"learned": {"allow": ["a.com:443"]}}}}


@pytest.mark.parametrize("words", [["log"], ["learn"]])
def test_without_a_sandbox_there_is_no_log(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["net", *words]) == 1
    assert "No project data" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["policy"], ["allow", "a.com"], ["deny", "a.com"]])
def test_what_changes_a_sandbox_needs_one_that_runs(
    words: list[str], project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["net", *words]) == 1
    assert "no running VM" in capsys.readouterr().err


def test_the_session_takes_commands(project: Project) -> None:
    rules = {"r": RuleConfig(allow=("a.com",), deny=("b.com",))}
    network = Network(NetworkConfig(rules=rules), project, [])
    shown = network.command({})
    assert shown["policy"] == "allow-by-default"
    assert shown["rules"] == [{"name": "r", "allow": ["a.com"], "deny": ["b.com"]}]
    assert network.command({"set": "deny-by-default"})["policy"] == "deny-by-default"
    reply = network.command({"allow": "c.com:80"})
    assert reply["rules"][-1] == {"name": "airlock net", "allow": ["c.com:80"], "deny": []}
    assert network.policy.mode == "deny-by-default"
    for wrong in ({"set": "allow"}, {"allow": "a*"}, {"deny": 7 * "."}):
        with pytest.raises(ValueError, match=r"policy|stands|host name"):
            network.command(wrong)
    for number in range(999):
        network.command({"deny": f"x{number}.com"})
    with pytest.raises(ValueError, match="more than 1000"):
        network.command({"deny": "more.com"})
    assert len(network.policy.rules[-1].deny) == 999
    network.close()
