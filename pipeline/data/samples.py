"""The samples that a model is fed with: inputs by name, in memory or decoded where they are asked for, and labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.statistics.batches import Batch, LazyBatch, cut_batches, samples_in, take_rows

LABELS = "labels"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs of a model, in memory or decoded where they are asked for.

    Attributes:
        name: where they are from, for messages and reports.
        inputs: one array for each model input, by its name, shape (N, ...); a `LazyBatch` was checked by its maker.
        labels: what an output should be: classes, whole numbers of shape (N, ...), or floats of its shape; or None.
        split: `train`, `test`, or None where the source has no parts.
        targets: other arrays of numbers, shape (N, ...), by their names: what the outputs of these names should be.

    Raises:
        DataError: no input, no sample, different lengths, values that are not finite, or labels that are no labels.
    """

    name: str
    inputs: Batch
    labels: Array | None = None
    split: str | None = None
    targets: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError(f"{self.name}: holds no input")
        if isinstance(self.inputs, LazyBatch):
            lengths = dict.fromkeys(self.inputs, self.inputs.samples)
        else:
            for name, array in self.inputs.items():
                check_array(f"{self.name}: array '{name}'", array)
            lengths = {name: len(array) for name, array in self.inputs.items()}
        if self.labels is not None:
            if self.labels.dtype.kind not in "iubf" or self.labels.ndim < 1:
                raise DataError(
                    f"{self.name}: labels are {self.labels.dtype} of shape {self.labels.shape}; whole numbers for "
                    "classes are needed, one for each sample or each of its positions, or floats of an output's shape"
                )
            lengths[LABELS] = len(self.labels)
        require_one_length(self.name, lengths | {name: len(array) for name, array in self.targets.items()})

    def __len__(self) -> int:
        return samples_in(self.inputs)

    @property
    def all_targets(self) -> dict[str, Array]:
        """What outputs should be, by name: `labels`, and the other targets."""
        return {**({} if self.labels is None else {LABELS: self.labels}), **self.targets}

    def batches(self, size: int) -> Iterator[Batch]:
        """The samples in their order, `size` at a time; the last batch may be smaller."""
        return cut_batches([self.inputs], size)

    def lazily(self) -> Samples:
        """These samples, their batches parts that can be reordered without a copy of all."""
        inputs = self.inputs
        if isinstance(inputs, LazyBatch):
            return self
        return replace(
            self, inputs=LazyBatch(lambda name, rows: inputs[name][rows], list(inputs), np.arange(len(self)))
        )

    def first(self, count: int) -> Samples:
        """The first so many samples."""
        return self._take(slice(count))

    def subset(self, samples: int | None, *, seed: int) -> Samples:
        """A random choice without replacement, in random order; all in theirs where no number is given."""
        return self if samples is None else self._take(choose_rows(len(self), samples, seed, self.name))

    def _take(self, rows: Array | slice) -> Samples:
        """Some of the samples."""
        labels = None if self.labels is None else self.labels[rows]
        targets = {name: array[rows] for name, array in self.targets.items()}
        return replace(self, inputs=take_rows(self.inputs, rows), labels=labels, targets=targets)


def other_targets(
    arrays: Mapping[str, Any], input_names: Sequence[str], samples: int, read: Callable[[Any, str], Array]
) -> dict[str, Array]:
    """The arrays of numbers with a row for each sample that are neither inputs nor `labels`, by name.

    Args:
        arrays: by name, whatever they hold.
        input_names: of the model.
        samples: N.
        read: makes an array of one, by its name; what raises a DataError is no target.
    """
    found = {}
    for name in arrays:
        if name in input_names or name == LABELS or not isinstance(name, str):
            continue
        try:
            array = read(arrays[name], name)
        except DataError:
            continue
        if array.ndim and len(array) == samples and array.dtype.kind in "iubf":
            found[name] = array
    return found


def choose_rows(total: int, samples: int, seed: int, name: str) -> Array:
    """The rows of a random choice without replacement, in random order: a folder of images is ordered by its classes.

    Asked for more than there are, it takes all and says so in the log.
    """
    if samples > total:
        _logger.warning(
            "%s: has %d samples, fewer than the %d that were asked for; all are taken", name, total, samples
        )
    return np.asarray(np.random.default_rng(seed).choice(total, min(samples, total), replace=False))


def require_one_length(name: str, lengths: Mapping[str, int]) -> None:
    """Refuses arrays that do not hold the same number of samples.

    Args:
        name: where they are from, for the message.
        lengths: of each array.

    Raises:
        DataError: naming each length.
    """
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"{name}: the arrays differ in length: {found}; give one sample of each per row")


def check_array(what: str, array: Array) -> None:
    """Refuses an array that holds no samples, or one that is not finite.

    Args:
        what: the array in words, for the message.
        array: shape (N, ...).

    Raises:
        DataError: naming the first sample that is not finite.
    """
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"{what} has the shape {array.shape}, which holds no sample")
    if array.dtype.kind not in "fiub":
        raise DataError(f"{what} holds {array.dtype}; numbers are needed")
    if array.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        if bad.size:
            raise DataError(f"{what} is not finite in {bad.size} of {len(array)} samples, the first is sample {bad[0]}")
