"""`airlock completion`: the script that teaches a shell airlock's commands and options."""

from __future__ import annotations

import click

from airlock.cli import COMPLETE, command, root


@command(
    "completion",
    examples=[
        "airlock completion bash >> ~/.bashrc",
        "airlock completion zsh >> ~/.zshrc",
        "airlock completion fish > ~/.config/fish/completions/airlock.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for SHELL."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    # Not `source()`: for bash that insists on running the bash that is installed here, to see its version.
    script = found(root, {}, "airlock", COMPLETE)
    text = script.source_template % script.source_vars()
    if shell == "zsh":
        # A fresh .zshrc has loaded no completion system yet; the first line is for one that has.
        first, rest = text.split("\n", 1)
        text = f"{first}\n(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}\n{rest}"
    click.echo(text)
