"""Has a disk fail at each write of each command: one clear line, and what stood there stands there still.

    python benchmarks/reliability/faults.py -o faults.json

A fault is an error (ENOSPC, EACCES, EIO) in one of the calls that open a file among the outputs for writing, sync,
rename or remove it or make a folder: the first of them, the second, and so on to the last; or a file that may not grow
past so many bytes, which is how a full disk meets a library in C. Commands run with --force over older outputs.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forked import load_libraries, run_command
from seeds import npz_bytes, seed_checkpoint, seed_models, seed_npz

ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO)
_CALLS = ("open", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir")
COMMANDS: dict[str, str] = {
    "optimize": "optimize net.onnx --data data.npz -o out/r.onnx --json out/r.json --html out/r.html "
    "--statistics out/r.npz --force",
    "inspect": "inspect net.onnx --data data.npz --json out/i.json --html out/i.html --force",
    "export": "export run/checkpoint.pt -o out/net.onnx --force",
    "verify": "verify net.onnx --against net.onnx --data data.npz --json out/v.json --force",
    "benchmark": "benchmark net.onnx --data data.npz --repair none --seconds 0 --json out/b.json --html out/b.html "
    "--predictions out/p.npz --force",
    "compare": "compare b.json b.json --json out/c.json --force",
    "package": "package net.onnx -o out --name net --force",
}


@dataclass
class Faults:
    """What became of the faults of one command.

    Attributes:
        outcomes: how many were refused in one line, and how many the command came through.
        wrong: what must not be, in words.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class FailingCall:
    """Makes one call of this process fail that would change what is below a folder.

    Args:
        folder: of the outputs.
        number: which of the calls, from 1.
        code: the error.
    """

    def __init__(self, folder: Path, number: int, code: int) -> None:
        self.folder, self.number, self.code, self.calls = str(folder), number, code, 0
        self.marker = folder.parent / "struck"

    def __call__(self) -> None:
        """Plants the fault."""
        for name in _CALLS:
            setattr(os, name, self._failing(getattr(os, name), name))
        opened = self._failing(io.open, "io.open")
        builtins.open = io.open = opened  # type: ignore[assignment]

    def _failing(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def failing(*arguments: Any, **options: Any) -> Any:
            if self._counts(name, arguments, options):
                self.calls += 1
                if self.calls == self.number:
                    os.close(_OPEN(self.marker, os.O_CREAT | os.O_WRONLY))
                    raise OSError(self.code, os.strerror(self.code), str(arguments[0]))
            return call(*arguments, **options)

        return failing

    def _counts(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
        """Whether a call changes something in the folder of the outputs."""
        if name == "fsync":
            return True
        if name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR):
            return False
        mode = str(options.get("mode", arguments[1] if len(arguments) > 1 else "r"))
        if name == "io.open" and not any(letter in mode for letter in "wax+"):
            return False
        if name in ("unlink", "rmdir"):
            return False  # of temporary files; where they can't be removed, they stay
        first = arguments[0]
        return not isinstance(first, int) and os.path.abspath(os.fsdecode(first)).startswith(self.folder)


_OPEN = os.open


class ShortFile:
    """Lets no file of this process grow past so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self) -> None:
        """Plants the limit; without the signal that would end the process, a write past it fails."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


def make_inputs(folder: Path) -> None:
    """What the commands read, in a new folder."""
    folder.mkdir(parents=True)
    (folder / "out").mkdir()
    (folder / "run").mkdir()
    (folder / "net.onnx").write_bytes(seed_models()["plain"].SerializeToString())
    (folder / "data.npz").write_bytes(npz_bytes(seed_npz(), compressed=False))
    with tempfile.TemporaryDirectory() as name:
        (folder / "run" / "checkpoint.pt").write_bytes(seed_checkpoint(Path(name, "run")))
    benchmark = COMMANDS["benchmark"].replace("out/b.json", "b.json")
    code, said = run_command(benchmark.split(), folder)
    assert code in (0, 1), said
    shutil.rmtree(folder / "out")
    (folder / "out").mkdir()


def digests(folder: Path) -> dict[str, str]:
    """What stands in a folder and its folders."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fail_everywhere(name: str, folder: Path, errors: Sequence[int] = ERRORS) -> Faults:
    """Runs one command again and again, with a fault in each of its calls, and with files that end early.

    Args:
        name: one of `COMMANDS`.
        folder: as `make_inputs` left it.
        errors: those that calls fail with, in turn.
    """
    command, faults = COMMANDS[name].split(), Faults()
    code, said = run_command(command, folder)
    assert code in (0, 1), said
    keep = folder.parent / f"{name}.whole"
    shutil.copytree(folder / "out", keep)
    number = 0
    while True:
        number += 1
        fault = FailingCall(folder / "out", number, errors[number % len(errors)])
        what = f"{name}, call {number}, {errno.errorcode[fault.code]}"
        _judge(what, folder, keep, run_command(command, folder, fault), faults)
        if not fault.marker.exists():
            break
        fault.marker.unlink()
    sizes = sorted({path.stat().st_size for path in keep.rglob("*") if path.is_file()})
    for size in (0, *(size // 2 for size in sizes), sizes[-1] - 1):
        _judge(f"{name}, {size} bytes", folder, keep, run_command(command, folder, ShortFile(size)), faults)
    shutil.rmtree(keep)
    shutil.rmtree(folder / "out")
    (folder / "out").mkdir()
    return faults


def _judge(what: str, folder: Path, keep: Path, ended: tuple[int, str], faults: Faults) -> None:
    """Looks at what is left after a fault, and puts the older outputs back."""
    code, said = ended
    errors = [line for line in said.splitlines() if line.startswith("vsfix: error: ")]
    found, before = digests(folder / "out"), digests(keep)
    refused = code in (2, 3, 4)
    faults.outcomes["refused" if refused else "came through"] += 1
    if "Traceback" in said or code not in (0, 1, 2, 3, 4):
        faults.wrong.append(f"{what}: exit {code}: {said[-600:]}")
    elif refused and len(errors) != 1:
        faults.wrong.append(f"{what}: says {said[-300:]!r}")
    if any(".part" in name for name in found):
        faults.wrong.append(f"{what}: leaves {sorted(found)}")
    cut = [name for name in before if name not in found or not _is_whole(folder / "out" / name)]
    if cut:
        faults.wrong.append(f"{what}: {cut} are lost or cut short")
    shutil.rmtree(folder / "out")
    shutil.copytree(keep, folder / "out")


def _is_whole(path: Path) -> bool:
    """Whether a file ends as its kind ends."""
    content = path.read_bytes()
    if path.suffix == ".json":
        try:
            return bool(json.loads(content))
        except ValueError:
            return False
    if path.suffix == ".html":
        return content.rstrip().endswith(b"</html>")
    return len(content) > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", choices=list(COMMANDS), action="append", help="only this one")
    parser.add_argument("-o", "--output", type=Path, help="write what was seen as JSON")
    arguments = parser.parse_args()
    load_libraries()
    seen = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "case")
        make_inputs(folder)
        for command in arguments.command or COMMANDS:
            seen[command] = fail_everywhere(command, folder)
            outcomes = ", ".join(f"{count} {what}" for what, count in sorted(seen[command].outcomes.items()))
            print(f"{command}: {outcomes}; {len(seen[command].wrong)} wrong")
            print("".join(f"  {line}\n" for line in seen[command].wrong), end="", flush=True)
    if arguments.output is not None:
        document = {name: {"outcomes": dict(found.outcomes), "wrong": found.wrong} for name, found in seen.items()}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    raise SystemExit(any(found.wrong for found in seen.values()))


if __name__ == "__main__":
    main()
