"""Runs commands of vsfix in this process and writes down what Python was asked to do to the world outside.

    python audited_commands.py EVENTS.json '[["inspect", "net.onnx"], ...]'

Python's audit events say so before it happens; libraries in C open files of their own, unseen. A command
`python CODE` runs code, so that a test can plant what the audit must see.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

_CHANGES = {
    "os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.truncate": 1, "os.link": 2, "os.symlink": 2,
    "os.chmod": 1, "os.utime": 1, "shutil.rmtree": 1,
}  # fmt: skip
_TALKS = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "urllib.Request",
)
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
_UNPICKLES = "pickle.find_class"


class Audit:
    """What happened, as pairs of the event and what it was about."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if writes and not isinstance(path, int):
                self.events.append(("write", self._path(path)))
        elif event in _CHANGES:
            self.events.extend(("write", self._path(path)) for path in arguments[: _CHANGES[event]])
        elif event in _TALKS:
            self.events.append(("network", f"{event} {arguments[-1]!r}"))
        elif event in _STARTS:
            self.events.append(("process", f"{event} {arguments[:2]!r}"))
        elif event == _UNPICKLES:
            self.events.append(("unpickle", ".".join(map(str, arguments))))

    @staticmethod
    def _path(path: Any) -> str:
        return path if isinstance(path, int) else os.path.abspath(os.fsdecode(path))


def main() -> None:
    events, commands = Path(sys.argv[1]), json.loads(sys.argv[2])
    from vsfix.pipeline.cli.main import vsfix

    audit = Audit()
    sys.addaudithook(audit)
    exit_codes = []
    for command in commands:
        if command[0] == "python":
            exec(command[1], {})
            continue
        try:
            vsfix(command, prog_name="vsfix")
        except SystemExit as end:
            exit_codes.append(end.code)
    seen = list(dict.fromkeys(audit.events))
    events.write_text(json.dumps({"exit_codes": exit_codes, "events": seen}))


if __name__ == "__main__":
    main()
