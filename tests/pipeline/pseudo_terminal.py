"""Processes on a pseudo-terminal, and what a person sees there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass

_PART = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


@dataclass(frozen=True)
class Session:
    """What a process left.

    Attributes:
        code: its exit code.
        written: everything that came to the terminal.
        first: seconds from its start to the first letter there; infinite where none came.
        stdout: what came to standard output, where that was a pipe.
    """

    code: int
    written: str
    first: float
    stdout: str

    @property
    def screen(self) -> list[str]:
        """The lines that are left on the terminal, the empty ones at the end not."""
        return screen_of(self.written)


def screen_of(written: str) -> list[str]:
    """The lines of a terminal that never scrolls; it knows what rich and this program send."""
    lines, row, column = [""], 0, 0
    for part in _PART.finditer(written):
        text = part.group()
        if text == "\r":
            column = 0
        elif text == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif text.startswith("\x1b"):
            count, letter = int(part.group(1).split(";")[0] or 1), part.group(2)
            if letter == "A":
                row = max(0, row - count)
            elif letter == "K":
                lines[row] = "" if count == 2 else lines[row][:column]
            else:
                assert letter in "mhl", text
        else:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
    return "\n".join(line.rstrip() for line in lines).rstrip("\n").split("\n")


def on_terminal(
    *arguments: str,
    width: int = 80,
    pipes_stdout: bool = False,
    act: Callable[[str, subprocess.Popen[bytes]], None] = lambda written, process: None,
) -> Session:
    """Runs Python on a pseudo-terminal.

    Args:
        arguments: of Python.
        width: of the terminal.
        pipes_stdout: standard output is a pipe, and only standard error the terminal.
        act: called with what was written so far, again and again.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=slave,
        stdout=subprocess.PIPE if pipes_stdout else slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    written, first = b"", float("inf")
    while True:
        if select.select([master], [], [], 0.05)[0]:
            try:
                found = os.read(master, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not found:
                break
            first = min(first, time.monotonic() - started)
            written += found
        act(written.decode(errors="replace"), process)
        assert time.monotonic() - started < 120
    os.close(master)
    stdout = process.communicate()[0] or b""
    return Session(process.returncode, written.decode(), first, stdout.decode())
