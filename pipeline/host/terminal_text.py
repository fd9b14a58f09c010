"""Text for a terminal: names come from files of strangers, and a terminal takes some characters for commands."""

from __future__ import annotations

import sys


def printable(text: str) -> str:
    """The text with what can't be seen as an escape: control characters, line breaks, changes of direction."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def print_line(text: str, *, err: bool = False) -> None:
    """Prints one line, whatever is in it, on stdout or on stderr."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:  # closed
        # Not by click: it would write past what draws bars in the place of a stream, and letters that it can't hold.
        print(printable(text), file=stream, flush=True)
