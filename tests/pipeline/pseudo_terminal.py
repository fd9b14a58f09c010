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
        width: of the terminal.
    """

    code: int
    written: str
    first: float
    stdout: str
    width: int

    @property
    def screen(self) -> list[str]:
        """The lines that are left on the terminal, the empty ones at the end not."""
        return screen_of(self.written, self.width)


def screen_of(written: str, width: int = 80) -> list[str]:
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
            for letter in text:
                if column == width:  # a line that is full goes on in the next one
                    row, column = row + 1, 0
                    lines += [""] * (row + 1 - len(lines))
                lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
                column += 1
    return "\n".join(line.rstrip() for line in lines).rstrip("\n").split("\n")


def on_terminal(
    *arguments: str,
    width: int = 80,
    pipes_stdout: bool = False,
    press: Callable[[str], bytes] = lambda written: b"",
) -> Session:
    """Runs Python on a pseudo-terminal.

    Args:
        arguments: of Python.
        width: of the terminal.
        pipes_stdout: standard output is a pipe, and only standard error the terminal.
        press: the keys that are pressed when so much was written; asked again and again.
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
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that keys make signals
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
        os.write(master, press(written.decode(errors="replace")))
        assert time.monotonic() - started < 120
    os.close(master)
    stdout = process.communicate()[0] or b""
    return Session(process.returncode, written.decode(), first, stdout.decode(), width)
