"""Feeds vsfix with damaged and hostile files: each ends in success or in one clear line.

    python benchmarks/reliability/fuzzing.py --inputs 20000 --seed 0 -o fuzzing.json
    python benchmarks/reliability/fuzzing.py --seed 0 --only 1234 --keep folder       # one input again, its files kept

Every input is made from a valid file by random changes that its number and the seed decide: single fields of protobuf
messages, attacks on the graph, members of zip files, bytes. A command reads it in a process of its own, which may take
20 s and 1 GiB more than it has at the start. Allowed are the exit codes 0 to 4, with one line on stderr past 1. All
else is a find: a traceback, a crash, a hang, memory, a file outside of the outputs, a model written that is not valid.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from data_mutation import mutate_file, mutate_npz, mutate_zip
from forked import load_libraries
from model_mutation import mutate_model
from seeds import npz_bytes, seed_checkpoint, seed_idx, seed_models, seed_npz
from trial import Outcome, run_trial

METHODS = ("auto", "match", "paired", "exact", "analytic", "none")
KINDS = {"model": 0.7, "npz": 0.12, "checkpoint": 0.1, "idx": 0.08}


@dataclass(frozen=True)
class Corpus:
    """The valid files.

    Attributes:
        models: by name, serialised.
        arrays: of the `.npz` file for them.
        idx: the files of a set like MNIST.
        checkpoint: of a small network on digits.
    """

    models: dict[str, bytes]
    arrays: dict[str, np.ndarray]
    idx: dict[str, bytes]
    checkpoint: bytes

    @classmethod
    def make(cls) -> Corpus:
        """Makes all of them; takes a few seconds."""
        models = {name: model.SerializeToString() for name, model in seed_models().items()}
        with tempfile.TemporaryDirectory() as folder:
            return cls(models, seed_npz(), seed_idx(), seed_checkpoint(Path(folder, "run")))


@dataclass(frozen=True)
class Case:
    """An input and what became of it.

    Attributes:
        number: of the input.
        kind: of file that was changed.
        changes: what was done to it.
        command: what read it.
        outcome: how that ended.
    """

    number: int
    kind: str
    changes: list[str]
    command: list[str]
    outcome: Outcome


def run_case(number: int, corpus: Corpus, seed: int, keep: Path | None = None) -> Case:
    """Makes the input of a number, in a folder of its own, and has a command read it."""
    rng = np.random.default_rng([seed, number])
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name, "case")
        (folder / "out").mkdir(parents=True)
        (folder / "scratch").mkdir()
        (folder / "link").symlink_to("/etc/passwd")
        changes, command = _WRITERS[kind](folder, corpus, rng)
        if keep is not None:
            shutil.copytree(folder, keep, symlinks=True)
        return Case(number, kind, changes, command, run_trial(command, folder))


def _write_model(folder: Path, corpus: Corpus, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """A changed model, and a command on it."""
    name = str(rng.choice(list(corpus.models)))
    content, changes = mutate_model(onnx.ModelProto.FromString(corpus.models[name]), rng)
    (folder / "bad.onnx").write_bytes(content)
    (folder / "seed.onnx").write_bytes(corpus.models[name])
    (folder / "data.npz").write_bytes(npz_bytes(corpus.arrays, compressed=False))
    data = ["--data", "data.npz"]
    commands = [
        ["inspect", "bad.onnx", *(data if rng.random() < 0.5 else [])],
        ["verify", "bad.onnx", "--against", "seed.onnx", *(data if rng.random() < 0.7 else [])],
        _optimize("bad.onnx", data, rng),
        _optimize("bad.onnx", data, rng),
    ]
    return [name, *changes], commands[rng.integers(len(commands))]


def _optimize(model: str, data: list[str], rng: np.random.Generator) -> list[str]:
    """`vsfix optimize` with options drawn at random."""
    method = str(rng.choice(METHODS))
    options = ["--method", method, "-o", "out/repaired.onnx"]
    options += [] if method in ("analytic", "none") else [*data, "--samples", "32"]
    options += ["--no-fold"] if rng.random() < 0.3 else []
    options += ["--precision", str(rng.choice(["fp16", "bf16"]))] if rng.random() < 0.2 else []
    options += ["--json", "out/report.json"] if rng.random() < 0.2 else []
    return ["optimize", model, *options]


def _write_npz(folder: Path, corpus: Corpus, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Changed samples, and a command that reads them."""
    content, changes = mutate_npz(npz_bytes(corpus.arrays, compressed=bool(rng.integers(2))), rng)
    (folder / "bad.npz").write_bytes(content)
    (folder / "seed.onnx").write_bytes(corpus.models["plain"])
    data = ["--data", "bad.npz"]
    commands = [
        ["inspect", "seed.onnx", *data],
        ["verify", "seed.onnx", "--against", "seed.onnx", *data],
        _optimize("seed.onnx", data, rng),
        ["optimize", "seed.onnx", "--method", "analytic", "--eval-data", "bad.npz", "-o", "out/repaired.onnx"],
    ]
    return changes, commands[rng.integers(len(commands))]


def _write_idx(folder: Path, corpus: Corpus, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """A changed file of a set like MNIST, and a command that reads it."""
    (folder / "images").mkdir()
    chosen = str(rng.choice(list(corpus.idx)))
    changes = []
    for name, content in corpus.idx.items():
        written = content
        if name == chosen:
            written, changes = mutate_file(content, rng)
        (folder / "images" / name).write_bytes(written)
    network = "--model preresnet-8 --noise dropout:0.5 --site a --epochs 1 --samples 8 --batch-size 4".split()
    return [chosen, *changes], ["train", *network, "--data", "fashion-mnist:images", "-o", "out/run"]


def _write_checkpoint(folder: Path, corpus: Corpus, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """A changed checkpoint, and a command that reads it."""
    content, changes = mutate_zip(corpus.checkpoint, rng)
    (folder / "bad.pt").write_bytes(content)
    (folder / "seed.pt").write_bytes(corpus.checkpoint)
    export = ["export", "bad.pt", "-o", "out/net.onnx"]
    verify = ["verify", "seed.pt", "--against", "bad.pt"]
    return changes, export if rng.random() < 0.5 else verify


_WRITERS = {"model": _write_model, "npz": _write_npz, "idx": _write_idx, "checkpoint": _write_checkpoint}


def run_cases(numbers: Sequence[int], corpus: Corpus, seed: int, processes: int) -> Iterator[Case]:
    """Runs many cases, in so many processes at once; yields them as they end."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    case = partial(run_case, corpus=corpus, seed=seed)
    with multiprocessing.get_context("spawn").Pool(processes, initializer=load_libraries) as pool:
        yield from pool.imap_unordered(case, numbers, chunksize=1 + len(numbers) // (20 * processes))


def describe(case: Case, seed: int) -> str:
    """A find in a few lines, with the command that makes it again."""
    last = [line for line in case.outcome.said.splitlines() if line.strip()][-3:]
    return "\n".join(
        [
            f"{case.outcome.verdict}: input {case.number}, {case.kind}: {', '.join(case.changes)}",
            f"  vsfix {' '.join(case.command)}",
            f"  exit {case.outcome.exit_code}, {case.outcome.seconds:.1f} s, {case.outcome.mebibytes:.0f} MiB",
            *(f"  | {line[:300]}" for line in last),
            f"  again: python benchmarks/reliability/fuzzing.py --seed {seed} --only {case.number} --keep FOLDER",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--only", type=int, help="run this input alone")
    parser.add_argument("--keep", type=Path, help="with --only: a new folder for its files")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path, help="write counts and finds as JSON")
    arguments = parser.parse_args()
    corpus = Corpus.make()
    if arguments.only is not None:
        load_libraries()
        case = run_case(arguments.only, corpus, arguments.seed, arguments.keep)
        print(describe(case, arguments.seed))
        raise SystemExit(not case.outcome.is_clean)
    counts: Counter[tuple[str, str]] = Counter()
    finds, slowest, largest = [], 0.0, 0.0
    numbers = range(arguments.first, arguments.first + arguments.inputs)
    for case in run_cases(numbers, corpus, arguments.seed, arguments.processes):
        counts[case.kind, case.outcome.verdict] += 1
        slowest, largest = max(slowest, case.outcome.seconds), max(largest, case.outcome.mebibytes)
        if not case.outcome.is_clean:
            finds.append(case)
            print(describe(case, arguments.seed), flush=True)
    print(f"\n{'file':12}{'outcome':20}{'inputs':>8}")
    for (kind, verdict), count in sorted(counts.items()):
        print(f"{kind:12}{verdict:20}{count:8}")
    print(f"{arguments.inputs} inputs, {len(finds)} finds; slowest {slowest:.1f} s, largest {largest:.0f} MiB")
    if arguments.output is not None:
        table = [{"file": kind, "outcome": verdict, "inputs": n} for (kind, verdict), n in sorted(counts.items())]
        document = {"seed": arguments.seed, "inputs": arguments.inputs, "counts": table, "slowest_s": slowest}
        document |= {"largest_mib": largest, "finds": [asdict(case) for case in finds]}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    raise SystemExit(bool(finds))


if __name__ == "__main__":
    main()
