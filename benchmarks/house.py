"""Counts that keep the source readable, each against its bound.

    python benchmarks/house.py [--no-runtime]

Modules of a folder and lines of a module in the three packages; lines and words of README; and how many sessions ONNX
Runtime opens, and how often a calibration set is measured, in one `vsfix optimize` of a PreResNet-20 with Dropout 0.5
and 32 samples (`--no-runtime` leaves these two out). Exit code 1 where a bound is passed.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import os
import pstats
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("graph_passes", "trainers", "pipeline")
MODULES = 12  # of a folder, beside __init__
LINES = 400  # of a module
README_LINES, README_WORDS = 150, 1_300
SESSIONS, MEASUREMENTS = 20, 4  # of one `optimize`
SAMPLES = 32
FORWARDS = 30  # in training mode, so that the statistics are those of the data under the noise


@dataclass(frozen=True)
class Count:
    """One counted thing: what, how many, the largest number that passes, and where it is passed."""

    what: str
    found: int
    bound: int
    where: str = ""

    @property
    def passed(self) -> bool:
        """Whether the count keeps to its bound."""
        return self.found <= self.bound


def modules(package: str) -> dict[Path, list[Path]]:
    """The modules of each folder of a package, beside __init__."""
    folders: dict[Path, list[Path]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.name != "__init__.py":
            folders.setdefault(path.parent, []).append(path)
    return folders


def source_counts() -> Iterator[Count]:
    """Folders and modules of the packages."""
    long = []
    for package in PACKAGES:
        folders = modules(package)
        largest = max(len(paths) for paths in folders.values())
        over = [f"{folder.relative_to(ROOT)} {len(paths)}" for folder, paths in folders.items() if len(paths) > MODULES]
        yield Count(f"modules in the largest folder of {package}", largest, MODULES, ", ".join(over))
        for path in (path for paths in folders.values() for path in paths):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > LINES:
                long.append(f"{path.relative_to(ROOT)} {lines}")
    yield Count(f"modules over {LINES} lines", len(long), 0, ", ".join(long))


def readme_counts() -> Iterator[Count]:
    """The length of README; a word is what stands between blanks, as `wc` counts it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    yield Count("lines of README", len(text.splitlines()), README_LINES)
    yield Count("words of README", len(text.split()), README_WORDS)


def write_network(folder: Path) -> None:
    """Writes net.onnx, whose statistics are those of the digits under Dropout, and images.npz."""
    import numpy as np
    import torch

    from vsfix.graph_passes.noise.noise import Noise
    from vsfix.trainers.data.datasets import load_dataset
    from vsfix.trainers.data.preprocessing import Preprocessing
    from vsfix.trainers.export.onnx_export import export_onnx
    from vsfix.trainers.layers.noise_sites import NoiseSites
    from vsfix.trainers.networks.network import NetworkConfig, build_network

    torch.manual_seed(0)
    pixels = load_dataset("digits", "train").images
    images = Preprocessing(channels=1, size=(8, 8), mean=(0.3,), std=(0.4,)).apply(pixels)
    network = build_network(NetworkConfig("preresnet-20", 1, (8, 8), 10, NoiseSites(a=Noise.parse("dropout:0.5"))))
    with torch.no_grad():
        for rows in torch.randint(len(images), (FORWARDS, 128)):
            network.train()(torch.from_numpy(images)[rows])
    export_onnx(network.eval(), torch.from_numpy(images[:4]), folder / "net.onnx")
    np.savez(folder / "images.npz", input=images)


def runtime_counts() -> Iterator[Count]:
    """Sessions and measurements of one `vsfix optimize`."""
    from vsfix.graph_passes.measurement.measurement import MomentsReader, measure
    from vsfix.pipeline.cli.main import vsfix
    from vsfix.trainers.export.onnxruntime_library import import_onnxruntime

    session = import_onnxruntime().InferenceSession
    with TemporaryDirectory() as name, open(os.devnull, "w", encoding="utf-8") as silence:
        folder = Path(name)
        profile = cProfile.Profile()
        with contextlib.redirect_stdout(silence):
            write_network(folder)
            net, out, images = (str(folder / file) for file in ("net.onnx", "out.onnx", "images.npz"))
            words = ["optimize", net, "-o", out, "--data", images, "--samples", str(SAMPLES), "--method", "match"]
            profile.runcall(vsfix.main, words, "vsfix", standalone_mode=False)
        if not Path(out).is_file():
            raise SystemExit("`vsfix optimize` wrote no model: there is nothing to count")
    of_one = f"of one `optimize` with {SAMPLES} samples"
    yield Count(f"runtime sessions {of_one}", calls(profile, session.__init__), SESSIONS)
    # A reader outside of a measurement reads statistics from runs that are made for something else.
    read = calls(profile, measure) + calls(profile, MomentsReader.__init__, own=False)
    yield Count(f"measurements {of_one}", read, MEASUREMENTS)


def calls(profile: cProfile.Profile, function: Callable[..., Any], *, own: bool = True) -> int:
    """How often a function was called; without `own` by other modules than its own."""
    code = function.__code__
    found: Any = pstats.Stats(profile)
    entry = found.stats.get((code.co_filename, code.co_firstlineno, code.co_name), (0, 0, 0, 0, {}))
    return int(entry[1] if own else sum(n[1] for (file, *_), n in entry[4].items() if file != code.co_filename))


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-runtime", action="store_true", help="count the source alone")
    options = parser.parse_args()
    counts = [*source_counts(), *readme_counts(), *(() if options.no_runtime else runtime_counts())]
    width = max(len(count.what) for count in counts)
    for count in counts:
        status = "PASS" if count.passed else "FAIL"
        print(f"{status}  {count.what:{width}}  {count.found:>6,}  at most {count.bound:>5,}  {count.where}".rstrip())
    return 0 if all(count.passed for count in counts) else 1


if __name__ == "__main__":
    sys.exit(main())
