"""The commands of `airlock`: which there are, where each one lives, and the one line that `airlock --help` says of it.

`airlock.main` and `airlock.cli` read this table. It imports nothing, so that help costs nothing.
"""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, str]] = {
    "start": ("airlock.commands.start:start", "Run a command in the project's sandbox"),
    "exec": ("airlock.commands.exec:exec_", "Run another command in the running sandbox (short: x)"),
    "stop": ("airlock.commands.stop:stop", "Stop the running sandbox"),
    "ps": ("airlock.commands.ps:ps", "List daemons and attached commands"),
    "logs": ("airlock.commands.logs:logs", "Print what the daemons have written"),
    "net": ("airlock.commands.net:net", "Show and change what the sandbox may reach"),
    "list": ("airlock.commands.list:list_", "List all sandboxes"),
    "show": ("airlock.commands.show:show", "Show the project's sandbox"),
    "rm": ("airlock.commands.rm:rm", "Remove the project's sandbox and its disk"),
    "config": ("airlock.commands.config:config", "Show the configuration, or its schema"),
    "build": ("airlock.commands.build:build", "Build an image from a recipe"),
    "recipe": ("airlock.commands.recipe:recipe", "List and show recipes"),
    "image": ("airlock.commands.image:image", "List and inspect the images in the store"),
    "kernel": ("airlock.commands.kernel:kernel", "Show and check the kernel configuration of recipes"),
    "store": ("airlock.commands.store:store", "Clean, verify and locate the store"),
    "doctor": ("airlock.commands.doctor:doctor", "Check what this machine has and lacks"),
    "completion": ("airlock.commands.completion:completion", "Print a completion script for a shell"),
}
"""Name → (module:attribute, short help), in the order of the help."""

ALIASES = {"x": "exec", "remove": "rm"}


def root_help() -> str:
    """What `airlock --help` prints."""
    lines = [f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items()]
    return _HELP.format(commands="\n".join(lines))


_HELP = """\
Usage: airlock [OPTIONS] COMMAND [ARGS]...

  Run untrusted programs in a small VM that one TOML file describes.

Commands:
{commands}

Options:
  -q, --quiet    Print nothing but results; works after the command too.
  -V, --version  Print the version.
  -h, --help     Print this, or the help of a command.

Example:
  airlock start -- uname -a
"""
