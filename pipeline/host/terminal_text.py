"""Text for a terminal: names come from files of strangers, and a terminal takes some characters for commands."""

from __future__ import annotations

import click


def printable(text: str) -> str:
    """The text with what can't be seen as an escape: control characters, line breaks, changes of direction."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def print_line(text: str, *, err: bool = False) -> None:
    """Prints one line, whatever is in it, on stdout or on stderr."""
    click.echo(printable(text), err=err)
