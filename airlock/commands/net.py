"""`airlock net`: what the sandbox has reached and what it may reach."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from airlock.cli import face, group
from airlock.output import note, one_line, say, say_json
from airlock_store.errors import AirlockError

if TYPE_CHECKING:
    from airlock_runner.net.reading import Entry
    from airlock_runner.project import Project

HEADS = (
    "TIME", "CONNECTION", "STATE", "PROTOCOL", "SENT", "RECEIVED", "SECONDS", "DESTINATION", "ADDRESS", "RULE",
)  # fmt: skip
_ROW = "{:<24}  {:<12}  {:<20}  {:<8}  {:>12}  {:>12}  {:>9}  {:<32}  {:<24}  {}"
_COLOURS = {
    "denied": "red", "refused": "red", "failed": "yellow", "reset": "yellow", "open": "green", "closed": None,
}  # fmt: skip


@group(
    "net",
    examples=[
        "airlock net log -f",
        "airlock net policy deny-by-default",
        "airlock net allow 'www.example.com:443'",
    ],
)
def net() -> None:
    """Show what the sandbox reached on the network, and change what it may reach while it runs."""


@net.command("log", examples=["airlock net log", "airlock net log -f --json", "airlock net log -n 20"])
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option("-n", "--last", type=click.IntRange(min=0), metavar="N", help="Only the last N connections.")
@click.option("--json", "as_json", is_flag=True, help="Print an object of JSON per line.")
def log(follow: bool, last: int | None, as_json: bool) -> None:
    """Print every connection: when, to what, whether it was allowed, by which rule, bytes each way, how long.

    Packets that were refused (UDP, ICMP, IPv6, SCTP) are there, too, with their number.

    With -f, a connection comes twice: when it is made, and when it has ended.
    """
    from airlock_runner.net.reading import Tail, connections

    project = _project()
    # First, so that nothing falls between what is known and what is new.
    tail = Tail(project) if follow else None
    known = connections(project)
    if not as_json:
        _say_row(HEADS)
    for entry in known[len(known) - min(last, len(known)) :] if last is not None else known:
        _say(entry, as_json)
    if tail is not None:
        sys.stdout.flush()
        for entry in tail:
            _say(entry, as_json)
            sys.stdout.flush()


@net.command("policy", examples=["airlock net policy", "airlock net policy deny-by-default"])
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument(
    "policy", required=False,
    type=click.Choice(["allow-always", "deny-always", "allow-by-default", "deny-by-default"]),
)  # fmt: skip
def policy(policy: str | None, as_json: bool) -> None:
    """Print the policy and the rules of the running sandbox, or set the policy.

    What is set holds from the next connection on, until the sandbox stops; airlock.toml is not changed.
    """
    reply = _ask({"set": policy} if policy is not None else {})
    if as_json:
        say_json({key: reply[key] for key in ("policy", "rules")})
        return
    say(f"policy: {reply['policy']}")
    for rule in reply["rules"]:
        for verb in ("allow", "deny"):
            for pattern in rule[verb]:
                say(f"{rule['name']}: {verb} {pattern}")


@net.command("allow", examples=["airlock net allow www.example.com:443", "airlock net allow '*.example.com'"])
@click.argument("pattern")
def allow(pattern: str) -> None:
    """Allow PATTERN in the running sandbox, from the next connection on, until it stops.

    What a rule denies stays denied, unless `airlock net deny` did it with the same pattern.
    """
    _tell_if_void(_ask({"allow": pattern}), f"{pattern} stays denied")


@net.command("deny", examples=["airlock net deny '*:25'"])
@click.argument("pattern")
def deny(pattern: str) -> None:
    """Deny PATTERN in the running sandbox, from the next connection on, until it stops."""
    _tell_if_void(_ask({"deny": pattern}), f"{pattern} stays allowed")


@net.command("learn", examples=["airlock net learn", "airlock net learn --denied"])
@click.option("--denied", is_flag=True, help="Also what the policy refused.")
def learn(denied: bool) -> None:
    """Print rules for airlock.toml that allow what the sandbox has reached, and no more.

    They are made of the log: run the sandbox with the default policy first, and do in it what it is for.
    """
    from airlock_runner.net.reading import connections, learned

    patterns = learned(connections(_project()), denied=denied)
    if not patterns:
        raise AirlockError("the log has no connection to learn from", hint="see `airlock net log`")
    lines = [
        '# With [network] policy = "deny-by-default", nothing else is reached.',
        "[network.rules.learned]",
    ]
    say("\n".join([*lines, "allow = [", *(f'    "{pattern}",' for pattern in patterns), "]"]))


def _project() -> Project:
    from airlock_runner.project import Project

    project = Project.find(Path.cwd())
    if project is None:
        raise AirlockError("No project data", hint="`airlock start` makes a sandbox here")
    return project


def _ask(what: dict[str, Any]) -> dict[str, Any]:
    from airlock_runner.project import Project
    from airlock_runner.remote import change_network

    return change_network(Project.find(Path.cwd()), what)


def _tell_if_void(reply: dict[str, Any], what: str) -> None:
    if reply["void"] is not None and not face().quiet:
        note(f"{what}: {reply['void']}")


def _say(entry: Entry, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps(entry.values()))
        return
    from airlock_runner.net.record import PACKET

    record = entry.record
    more = record.error if record.state == "failed" else f"x{record.count}" if record.kind == PACKET else ""
    sent, received = ("-", "-") if record.kind == PACKET else (str(record.sent), str(record.received))
    where = record.name or record.address or "?"
    if record.kind == "forward":
        where = "sandbox"
    elif record.kind == "port":
        where = "localhost"
    if record.port is not None:
        where = f"[{where}]:{record.port}" if ":" in where else f"{where}:{record.port}"
    _say_row(
        (
            entry.time, record.id, f"{record.state} {more}".rstrip(), record.protocol, sent, received,
            f"{record.seconds:.3f}", where, record.address or "-", record.rule,
        ),
        _COLOURS.get(record.state),
    )  # fmt: skip


def _say_row(cells: tuple[str, ...], colour: str | None = None) -> None:
    text = _ROW.format(*(one_line(cell) for cell in cells)).rstrip()
    # click takes the colour out again where nobody sees it.
    click.echo(click.style(text, fg=colour) if colour and not os.environ.get("NO_COLOR") else text)
