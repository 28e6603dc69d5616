"""Where the `airlock` command begins. Help and version are answered here, before anything heavy is imported."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130
"""As for any program that SIGINT ended."""


def main() -> int:
    """Run the command line in sys.argv; gives the exit code."""
    try:
        return _answer()
    except KeyboardInterrupt:
        return INTERRUPTED


def _answer() -> int:
    _ensure_stdio()
    match sys.argv[1:]:
        case ["-h" | "--help"]:
            text = _help()
        case ["-V" | "--version"]:
            text = _version()
        case [] if "_AIRLOCK_COMPLETE" not in os.environ:
            text = _help()
        case arguments:
            from airlock.cli import run

            return run(arguments)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        from airlock.failure import explain

        return explain(error)
    return 0


def _ensure_stdio() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that our caller closed.

    Python has None there, which nobody expects, and files that are opened later would get their numbers.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _help() -> str:
    from airlock.commands import root_help

    return root_help()


def _version() -> str:
    from airlock import __version__

    return f"airlock {__version__}\n"


if __name__ == "__main__":
    sys.exit(main())
