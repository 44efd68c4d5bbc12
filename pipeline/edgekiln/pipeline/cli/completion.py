"""``completion``: the script that lets a shell complete commands, options and files."""

from __future__ import annotations

import click

from edgekiln.pipeline.cli.options import json_option, print_document

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
@click.pass_context
def completion(context: click.Context, shell: str, as_json: bool) -> None:
    """Print the completion script of a shell. Put the line into its start-up file.

    \b
    eval "$(edgekiln completion bash)"           in ~/.bashrc
    eval "$(edgekiln completion zsh)"            in ~/.zshrc
    edgekiln completion fish | source            in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # the choice knows no other
    script = kind(context.find_root().command, {}, "edgekiln", "_EDGEKILN_COMPLETE").source()
    if as_json:
        print_document({"shell": shell, "script": script})
    else:
        click.echo(script)
