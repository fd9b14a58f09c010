"""Fuzzes the readers under Atheris, which looks at which branches an input takes and keeps those that reach new ones.

    pip install atheris                 # Python up to 3.13, Linux
    python benchmarks/reliability/reader_fuzzing.py --seconds 150 READER

READER is one of onnx, npz, npy, table, idx, pickle, checkpoint, preprocessing. Its corpus begins with valid files; what
is allowed is a value or one of vsfix's own errors of a single line; everything else, and an input that takes over 20
seconds or 2 GiB, stops the run and leaves the input behind.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, MEBIBYTES = 20, 2048
MODULES = (
    "vsfix.graph_passes.io.model_file",
    "vsfix.graph_passes.io.stored_tensors",
    "vsfix.trainers.data.npz_file",
    "vsfix.pipeline.data.tables",
    "vsfix.trainers.data.idx_file",
    "vsfix.trainers.data.cifar",
    "vsfix.trainers.training.checkpoint",
    "vsfix.trainers.data.preprocessing",
)


READERS = ("onnx", "npz", "npy", "table", "idx", "pickle", "checkpoint", "preprocessing")


def read_pickled_batch(path: Path) -> Any:
    """Reads a pickle as the test images of CIFAR-100."""
    from vsfix.trainers.data.cifar import read_cifar

    names = [f"class {number}" for number in range(100)]
    (path.parent / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, 2))
    return read_cifar("cifar100", path.rename(path.parent / "test").parent, "test")


def reader(name: str) -> tuple[Callable[[Path], Any], list[bytes]]:
    """A reader, and the valid files that its corpus begins with."""
    from seeds import npz_bytes, seed_checkpoint, seed_idx, seed_models, seed_npz

    from vsfix.graph_passes.io.model_file import read_model
    from vsfix.pipeline.data.tables import read_table
    from vsfix.trainers.data.idx_file import read_idx_file
    from vsfix.trainers.data.npz_file import read_npy, read_npz
    from vsfix.trainers.data.preprocessing import Preprocessing
    from vsfix.trainers.training.checkpoint import load_checkpoint

    match name:
        case "onnx":
            return read_model, [model.SerializeToString() for model in seed_models().values()]
        case "npz":
            return read_npz, [npz_bytes(seed_npz(), compressed=packed) for packed in (False, True)]
        case "npy":
            file = BytesIO()
            np.save(file, np.ones((3, 2), np.float32))
            return read_npy, [file.getvalue()]
        case "table":
            return read_table, [b'a,b,"c ""d"""\n1,2.5,x\n-3,4e2,"y\nz"\n', "\ufeffa;b\n1;2\n".encode()]
        case "idx":
            return lambda path: read_idx_file(path, rank=3), list(seed_idx().values())
        case "pickle":
            batch = {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [1, 2], b"filenames": [b"a", b"b"]}
            return read_pickled_batch, [pickle.dumps(batch, protocol) for protocol in (2, 3, 4)]
        case "checkpoint":
            return load_checkpoint, [seed_checkpoint(Path(tempfile.mkdtemp()))]
    stated = Preprocessing(channels=1, size=(28, 28), mean=(0.5,), std=(0.25,), class_names=("a", "b"))
    return lambda path: Preprocessing.from_json(path.read_text(errors="replace")), [stated.to_json().encode()]


def fuzz(name: str, folder: Path, seconds: int) -> None:
    """Runs one reader until the time is over; never returns."""
    import atheris

    with atheris.instrument_imports(include=list(MODULES)):
        read, corpus = reader(name)
    from vsfix.graph_passes.errors import VsfixError

    for number, content in enumerate(corpus):
        (folder / f"seed{number}").write_bytes(content)
    scratch = Path(tempfile.mkdtemp()) / "input"

    def one(content: bytes) -> None:
        scratch.write_bytes(content)
        try:
            read(scratch)
        except VsfixError as error:
            if "\n" in str(error):
                raise AssertionError(f"an error of several lines: {error}") from error

    options = [f"-max_total_time={seconds}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEBIBYTES}", f"-max_len={1 << 20}"]
    atheris.Setup([sys.argv[0], str(folder), *options, f"-artifact_prefix={folder.parent}/"], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "reader", nargs="*", metavar="READER", help="which; all, one after the other, where none is named"
    )
    parser.add_argument("--seconds", type=int, default=100, help="for each")
    parser.add_argument("--keep", type=Path, default=Path("reader_fuzzing"), help="folder of corpora and finds")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.reader or list(READERS)
    if arguments.inside:
        folder = arguments.keep / names[0]
        folder.mkdir(parents=True, exist_ok=True)
        fuzz(names[0], folder, arguments.seconds)
    failed = False
    for name in names:
        command = [sys.executable, __file__, name, "--inside", "--seconds", str(arguments.seconds)]
        done = subprocess.run(
            [*command, "--keep", str(arguments.keep)], capture_output=True, text=True, check=False, env=os.environ
        )
        runs = re.findall(r"^#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr, re.MULTILINE)
        failed = failed or done.returncode != 0 or not runs
        if runs:
            inputs, coverage, _, corpus = map(int, runs[-1])
            print(f"{name}: {inputs:,} inputs, {coverage:,} branches, corpus of {corpus}", flush=True)
        if done.returncode or not runs:
            print(f"{name}: exit {done.returncode}\n" + done.stderr[-3000:], flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
