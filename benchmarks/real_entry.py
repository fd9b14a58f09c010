"""One network of the world: its source, the noise that it was trained with, the data, and what its answers are worth.

Entries are declared in the modules that `real_networks` lists; `real_measure` measures them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]


class Missing(Exception):
    """Something that a network needs is not here; the message is the line that installs it."""


@dataclass(frozen=True)
class Metric:
    """What one number for each unit means.

    Attributes:
        name: with its unit, as `within 50 cents, %`.
        higher_is_better: whether more of it is better.
        digits: that it is shown with.
    """

    name: str
    higher_is_better: bool = True
    digits: int = 2


@dataclass(frozen=True, eq=False)
class Case:
    """A network that can be measured.

    Attributes:
        model: as it is told: the noise marked, or in `noise`.
        rows: unlabelled samples for the repair, an array for each input, batch first.
        test: samples that nothing else has seen.
        score: from the outputs on `test` an array for each metric, one value for each unit; units are independent.
        metrics: what these values are; the first one decides.
        lost: the file that does not show its noise; None where that is `model` without `noise`.
        noise: what `model` does not show, as `--noise` takes it.
        parity_db: signal to noise of `model` against the original framework on `test`; None where none was asked.
        parity_with: that framework.
        is_classifier: whether the output is scores of classes before a softmax, which a mean of passes needs to know.
    """

    model: onnx.ModelProto
    rows: Outputs
    test: Outputs
    score: Callable[[Outputs], tuple[Array, ...]]
    metrics: tuple[Metric, ...]
    lost: onnx.ModelProto | None = None
    noise: tuple[str, ...] = ()
    parity_db: float | None = None
    parity_with: str = ""
    is_classifier: bool = False


@dataclass(frozen=True)
class Network:
    """One entry.

    Attributes:
        name: as the table shows it, and a file name.
        task: in a few words.
        weights: `published`, or `trained here`.
        noise: what noise stands where, in words.
        reaches: how many of its BatchNorms the noise reaches by the source, of how many.
        source: the file and the function that say so.
        make: builds the case, with the folder of wheels and of what is kept.
        samples: unlabelled samples for the repair; None for what vsfix takes.
    """

    name: str
    task: str
    weights: str
    noise: str
    reaches: tuple[int, int]
    source: str
    make: Callable[[Place], Case]
    samples: int | None = None


@dataclass(frozen=True)
class Place:
    """The folders and programs that the networks are made with.

    Attributes:
        cache: wheels, rendered sound, trained weights.
        tensorflow: a Python that has tensorflow 2.15, to hold converted networks against; None for no such check.
        effort: 1 for the networks of the table; less trains and measures on less, for a test.
    """

    cache: Path
    tensorflow: Path | None = None
    effort: float = 1.0

    def count(self, number: int) -> int:
        """So many samples or steps at this effort, 24 at the least."""
        return max(24, round(number * self.effort))

    def wheel(self, project: str, version: str) -> Path:
        """The unpacked wheel of a project.

        Raises:
            Missing: it is not in the cache.
        """
        name = f"{project.replace('-', '_')}-{version}"
        folder = self.cache / name
        if not folder.exists():
            wheels = sorted(self.cache.glob(f"{name}-*.whl"))
            if not wheels:
                raise Missing(f"pip download --no-deps --only-binary :all: -d {self.cache} {project}=={version}")
            partial = folder.with_suffix(".partial")
            with zipfile.ZipFile(wheels[0]) as archive:
                archive.extractall(partial)
            partial.rename(folder)
        return folder

    def kept(self, name: str, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
        """Arrays that are made once and then read from the cache."""
        path = self.cache / f"{name}-{self.effort:g}.npz"
        if not path.exists():
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, allow_pickle=False, **make())
            partial.rename(path)
        with np.load(path) as held:
            return {key: held[key] for key in held.files}


def only(outputs: Outputs) -> Array:
    """The one output."""
    (array,) = outputs.values()
    return array
