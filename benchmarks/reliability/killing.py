"""Kills `vsfix optimize` and `vsfix train` at random moments: outputs are the old or the new ones, and a run goes on.

    python benchmarks/reliability/killing.py --kills 200 --seed 0 -o killing.json

Half of the kills come after a random time, half at a random one of the calls that change the folder of the outputs,
where a writer is weakest. SIGKILL can't be caught. After each, the command is given again and runs to its end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from forked import fork_command, load_libraries, run_command
from seeds import npz_bytes, seed_models, seed_npz

from vsfix.trainers.training.checkpoint import load_checkpoint

OPTIMIZE = (
    "optimize net.onnx --data data.npz --samples 8 -o out/repaired.onnx --json out/r.json --html out/r.html --force"
)
TRAIN = (
    "train --model preresnet-8 --data digits --noise dropout:0.5 --site a --samples 128 --batch-size 32 --epochs 3 "
    "--save-every 0 -o out/run"
)
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


@dataclass
class Tally:
    """What was seen.

    Attributes:
        states: of the output after a kill: old, new, absent, or where a run stood.
        faults: what must not be, in words.
    """

    states: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Killed:
    """Counts the calls that change the folder of the outputs, and kills this process at one of them."""

    def __init__(self, folder: Path, call: int) -> None:
        self.folder, self.call, self.calls = str(folder), call, 0

    def __call__(self) -> None:
        """Begins to count, in the process that is to be killed."""
        sync = os.fsync
        sys.addaudithook(self._hear)

        def counted(descriptor: int) -> None:
            self._count()
            sync(descriptor)

        os.fsync = counted

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        writes = event in _CHANGES or (event == "open" and _is_written(arguments))
        if writes and os.path.abspath(os.fsdecode(str(arguments[0]))).startswith(self.folder):
            self._count()

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.call:
            os.kill(os.getpid(), signal.SIGKILL)


def _is_written(arguments: tuple[object, ...]) -> bool:
    _, mode, flags = arguments
    opened = flags if isinstance(flags, int) else 0
    return any(letter in str(mode or "") for letter in "wax+") or bool(opened & (os.O_WRONLY | os.O_RDWR))


def kill(command: list[str], folder: Path, seconds: float, rng: np.random.Generator, calls: int) -> int:
    """Runs a command and kills it; returns its exit code, -9 where the kill came in time."""
    if rng.random() < 0.5:
        return run_command(command, folder, Killed(folder / "out", int(rng.integers(1, calls + 1))))[0]
    with open(os.devnull, "wb") as output:
        process = fork_command(command, folder, output.fileno())
    time.sleep(seconds * rng.uniform(0, 1.1))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def digest(path: Path) -> str | None:
    """Of a file's content; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def count_calls(command: list[str], folder: Path) -> int:
    """How many calls of a whole run change the folder of the outputs: the first number that kills nothing, less one."""
    low, high = 0, 1
    while _dies(command, folder, high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _dies(command, folder, middle) else (low, middle)
    return low


def _dies(command: list[str], folder: Path, call: int) -> bool:
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    return run_command(command, folder, Killed(folder / "out", call))[0] == -signal.SIGKILL


def temporary_names(folder: Path) -> list[str]:
    """What of the names in a folder and its folders is a temporary one."""
    return [path.name for path in folder.rglob("*") if ".part" in path.name]


def kill_optimize(
    folder: Path,
    kills: int,
    rng: np.random.Generator,
    *,
    calls: int = 0,
    fault: Callable[[Path], None] | None = None,
) -> Tally:
    """Kills `optimize --force` over older outputs.

    Args:
        folder: a new one.
        kills: how many.
        rng: decides when.
        calls: how many of a run change the outputs, where that is known; 0 counts them, by some runs more.
        fault: planted before the outputs are looked at, to see that it is seen.
    """
    command, tally = OPTIMIZE.split(), Tally()
    (folder / "out").mkdir(parents=True)
    (folder / "data.npz").write_bytes(npz_bytes(seed_npz(), compressed=False))
    (folder / "net.onnx").write_bytes(seed_models()["plain"].SerializeToString())
    began = time.monotonic()
    code, said = run_command(command, folder)
    seconds = time.monotonic() - began
    assert code == 0, said
    new = digest(folder / "out" / "repaired.onnx")
    calls = calls or count_calls(command, folder)
    old_model = seed_models()["function"].SerializeToString()
    for number in range(kills):
        (folder / "out" / "repaired.onnx").write_bytes(old_model)
        (folder / "out" / "r.json").write_text('{"old": true}\n')
        (folder / "out" / "r.html").write_text("<html>old</html>\n")
        was_killed = kill(command, folder, seconds, rng, calls) == -signal.SIGKILL
        if fault is not None:
            fault(folder / "out")
        found = digest(folder / "out" / "repaired.onnx")
        state = {hashlib.sha256(old_model).hexdigest(): "old", new: "new"}.get(found, "mixed")
        tally.states[state if was_killed else "ended before"] += 1
        if state == "mixed":
            tally.faults.append(f"kill {number}: the model is neither the old nor the new one")
        for name, end in (("r.json", "}"), ("r.html", "</html>")):
            text = (folder / "out" / name).read_text()
            if not text.rstrip().endswith(end) or (name.endswith(".json") and not json.loads(text)):
                tally.faults.append(f"kill {number}: {name} is cut short")
        code, said = run_command(command, folder)
        if code or digest(folder / "out" / "repaired.onnx") != new or temporary_names(folder / "out"):
            tally.faults.append(
                f"kill {number}: the next run ends with {code}, {temporary_names(folder / 'out')}: {said}"
            )
    return tally


def kill_train(folder: Path, kills: int, rng: np.random.Generator, *, calls: int = 0) -> Tally:
    """Kills `train`, and has the same command go on to the end, whose weights are those of an undisturbed run.

    The arguments are those of `kill_optimize`.
    """
    command, tally = TRAIN.split(), Tally()
    (folder / "out").mkdir(parents=True)
    began = time.monotonic()
    code, said = run_command(command, folder)
    seconds = time.monotonic() - began
    assert code == 0, said
    checkpoint = folder / "out" / "run" / "checkpoint.pt"
    expected = load_checkpoint(checkpoint).model
    calls = calls or count_calls(command, folder)
    for number in range(kills):
        shutil.rmtree(folder / "out")
        (folder / "out").mkdir()
        was_killed = kill(command, folder, seconds, rng, calls) == -signal.SIGKILL
        state = f"after epoch {load_checkpoint(checkpoint).epoch}" if checkpoint.exists() else "before the first save"
        tally.states[state if was_killed else "ended before"] += 1
        code, said = run_command(command, folder)
        if code:
            tally.faults.append(f"kill {number}: the next run ends with {code}: {said}")
            continue
        found = load_checkpoint(checkpoint).model
        if found.keys() != expected.keys() or not all(torch.equal(found[name], expected[name]) for name in expected):
            tally.faults.append(f"kill {number}: the resumed run ends with other weights")
        if temporary_names(folder / "out"):
            tally.faults.append(f"kill {number}: {temporary_names(folder / 'out')} are left")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="write what was seen as JSON")
    arguments = parser.parse_args()
    load_libraries()
    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        tallies = {
            "optimize": kill_optimize(Path(name, "optimize"), arguments.kills, rng),
            "train": kill_train(Path(name, "train"), arguments.kills, rng),
        }
    for command, tally in tallies.items():
        states = ", ".join(f"{count} {state}" for state, count in sorted(tally.states.items()))
        print(f"{command}: {sum(tally.states.values())} kills: {states}; {len(tally.faults)} faults")
        print("".join(f"  {fault}\n" for fault in tally.faults), end="")
    if arguments.output is not None:
        seen = {name: {"states": dict(tally.states), "faults": tally.faults} for name, tally in tallies.items()}
        arguments.output.write_text(json.dumps({"seed": arguments.seed, "seen": seen}, indent=1) + "\n")
    raise SystemExit(any(tally.faults for tally in tallies.values()))


if __name__ == "__main__":
    main()
