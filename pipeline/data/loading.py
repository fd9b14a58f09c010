"""Data in any form, read and brought to what a model takes.

A named data set is images, and becomes input by the preprocessing that the model itself carries, or a person says. All
else is input already, but for its type and for images of bytes (see `fitting`):

    FILE.npz           one array for each model input, by its name, batch first, and optionally `labels`
    FILE.npy           the only input, batch first; of a large one the rows wanted are read alone
    FILE.csv, .tsv     columns of numbers, and optionally a label (see `tables`)
    module:function    what a function of the user gives, in the forms of `data_forms`; and so what Python gives
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.io.named_file import user_path
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import LazyBatch, samples_in
from vsfix.trainers.data.datasets import DEFAULT_SIZE, KNOWN, NAMES, Split, load_dataset
from vsfix.trainers.data.images import CroppedImages
from vsfix.trainers.data.npz_file import read_npy, read_npz
from vsfix.trainers.data.preprocessing import Preprocessing

from .data_forms import Data, GivenData, data_text, is_code, is_named_set, read_code, read_data
from .fitting import HOW_TO_NORMALISE, ModelInput, cast_array, fit_array, fit_images
from .samples import LABELS, Samples, check_array, choose_rows, other_targets
from .tables import read_table, table_file

HELD = 8  # this part of the memory may hold a decoded set; a larger one is decoded run by run


@stage("reading the data")
def load_samples(
    data: Data,
    *,
    split: str,
    preprocessing: Preprocessing | None,
    input_names: Sequence[str],
    samples: int | None,
    seed: int,
    at_most: bool = False,
    max_memory: int | None = None,
    labelled: bool = True,
    inputs: Sequence[ModelInput] = (),
) -> Samples:
    """Loads data in any form.

    Args:
        data: a text: the name of a data set as `load_dataset` takes it, a file of model inputs, or a function of the
            user's; or data in one of the forms of `data_forms`, or with what a person says of it.
        split: `train` or `test`; all but a named set has no parts.
        preprocessing: what the model says about its input; a named data set needs it, or what a person says.
        input_names: the inputs of the model.
        samples: how many to choose at random; None takes all, in their order.
        seed: of the choice.
        at_most: fewer than `samples` are as good, and no warning.
        max_memory: bytes that the process may hold; images, and rows of an `.npy` file, that would take too much of it
            are read each time when they are asked for. None decodes images at once, and is the usual limit for a file.
        labelled: read the labels where there are some; else they are not looked at.
        inputs: what the model says of its inputs, to which the data is brought; empty where nothing is known.

    Raises:
        InputError: unknown data, a missing file, or images that nobody says the preprocessing of.
        DataError: data that is empty, has other arrays than the model needs, does not fit it, or is not finite.
    """
    given = GivenData.of(data)
    spec = data_text(given)
    takes = {one.name: one for one in inputs}
    asked = _Asked([takes.get(name, ModelInput(name)) for name in input_names], samples, seed, at_most, labelled)
    if spec is not None and is_named_set(spec):
        return _from_set(spec, given, split, preprocessing, asked, max_memory)
    if spec is not None and spec.endswith(".npy"):
        return _from_npy(user_path(spec), given, preprocessing, asked, max_memory)
    options: dict[str, Any] = {
        "samples": samples,
        "seed": seed,
        "at_most": at_most,
        "max_memory": max_memory,
        "labelled": labelled,
        "inputs": inputs,
    }
    if spec is None:
        found = read_data(given.data, input_names, note=given.note, **options)
    elif is_code(spec):
        found = read_code(spec, input_names, note=given.note, **options)
    else:
        whole = _from_npz(user_path(spec), asked) if spec.endswith(".npz") else _from_table(spec, given, asked)
        found = whole.subset(asked.number(len(whole)), seed=seed)
    arrays = {
        one.name: fit_array(
            found.inputs[one.name],
            one,
            f"{found.name}: array '{one.name}'",
            preprocessing,
            given.normalization,
            given.note,
        )
        for one in asked.inputs
    }
    return replace(found, inputs=arrays)


@dataclass(frozen=True)
class _Asked:
    """The samples that are asked for: see `load_samples`."""

    inputs: Sequence[ModelInput]
    samples: int | None
    seed: int
    at_most: bool
    labelled: bool

    @property
    def names(self) -> list[str]:
        """The names of the inputs."""
        return [one.name for one in self.inputs]

    def number(self, total: int) -> int | None:
        """The number to choose, where fewer are as good."""
        return min(self.samples, total) if self.at_most and self.samples is not None else self.samples

    def rows(self, total: int, name: str) -> Array:
        """The rows of a set of so many; all in their order where no number is given."""
        number = self.number(total)
        return np.arange(total) if number is None else choose_rows(total, number, self.seed, name)

    def only(self, spec: str, held: str, remedy: str) -> ModelInput:
        """The only input.

        Raises:
            InputError: there are several.
        """
        if len(self.inputs) != 1:
            raise InputError(
                f"data '{spec}': holds {held}, but the model has the inputs {', '.join(self.names)}; {remedy}"
            )
        return self.inputs[0]


def _from_set(
    spec: str,
    given: GivenData,
    split: str,
    stated: Preprocessing | None,
    asked: _Asked,
    max_memory: int | None,
) -> Samples:
    """Samples of a named data set."""
    if spec.partition(":")[0] not in NAMES:
        raise InputError(
            f"data '{spec}': unknown; known are {KNOWN}, FILE.npz, FILE.npy, FILE.csv and FILE.tsv, and "
            "package.module:function"
        )
    said, size = given.normalization, given.normalization.size
    known = [one.size for one in asked.inputs[:1]] if stated is None else [stated.size]
    size = size or known[0]
    dataset = load_dataset(spec, cast("Split", split), size=size or DEFAULT_SIZE)
    wanted = asked.only(spec, "one image per sample", "give an .npz file")
    height, width, channels = dataset.images.shape[1:]
    preprocessing = said.preprocessing(stated, channels, (height, width))
    takes_bytes = wanted.dtype == np.uint8 and preprocessing is None
    if preprocessing is None and not takes_bytes:
        raise InputError(
            f"data '{spec}': the model does not say how its images are preprocessed: {HOW_TO_NORMALISE}; or give an "
            ".npz file with its inputs, or a model that `vsfix export` wrote"
        )
    if size is None and isinstance(dataset.images, CroppedImages):
        raise InputError(
            f"data '{spec}': the model takes images of any size; say that of the training, as --size 224x224"
        )
    if stated is not None and said.mean is not None and preprocessing != stated:
        given.note("the model states its own preprocessing; --mean and --std are taken in its place")
    rows = asked.rows(len(dataset.images), dataset.name)
    what = f"{dataset.name}: array '{wanted.name}'"

    def decode(_: str, chosen: Array) -> Array:
        return fit_images(dataset.images[chosen], wanted, what, preprocessing)

    inputs = LazyBatch(decode, asked.names, rows)
    decoded = len(rows) * int(np.prod(dataset.images.shape[1:])) * np.dtype(np.float32).itemsize
    is_held = max_memory is None or decoded <= max_memory // HELD
    return Samples(dataset.name, dict(inputs) if is_held else inputs, dataset.labels[rows], split)


def _from_npy(
    path: Path, given: GivenData, stated: Preprocessing | None, asked: _Asked, max_memory: int | None
) -> Samples:
    """Samples of an `.npy` file, of which no other row is read."""
    wanted = asked.only(
        str(path), "one array", f"give an .npz file: numpy.savez('rows.npz', {_as_arguments(asked.names)})"
    )
    array = read_npy(path)
    what = f"{path}: array '{wanted.name}'"
    check_array(what, array[:1] if array.ndim else array)
    rows = asked.rows(len(array), str(path))

    def read(_: str, chosen: Array) -> Array:
        values = np.asarray(array[chosen])
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        check_array(what, values)
        return fit_array(values, wanted, what, stated, given.normalization, given.note)

    read(wanted.name, rows[:1])  # what does not fit is said here, and not where a batch is read
    inputs = LazyBatch(read, asked.names, rows)
    taken = len(rows) * int(np.prod(array.shape[1:])) * (wanted.dtype or array.dtype).itemsize
    is_held = taken <= (DEFAULT_MAX_MEMORY if max_memory is None else max_memory) // HELD
    return Samples(str(path), dict(inputs) if is_held else inputs)


def _as_arguments(names: Sequence[str]) -> str:
    """Arguments of numpy.savez for these arrays."""
    return ", ".join(f"{name}=..." if name.isidentifier() else f"**{{'{name}': ...}}" for name in names)


def _from_npz(path: Path, asked: _Asked) -> Samples:
    """All samples of an `.npz` file."""
    arrays = read_npz(path)
    for name in asked.names:
        if name not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise DataError(f"{path}: has no array '{name}', which the model needs; it holds {found}")
    inputs = {name: arrays[name] for name in asked.names}
    labels = arrays.get(LABELS) if asked.labelled and LABELS not in asked.names else None
    targets = other_targets(arrays, asked.names, samples_in(inputs), lambda array, _: array) if asked.labelled else {}
    return Samples(str(path), inputs, labels, targets=targets)


def _from_table(spec: str, given: GivenData, asked: _Asked) -> Samples:
    """All samples of a table."""
    named = table_file(spec)
    assert named is not None
    table = read_table(user_path(named[0]))
    label = table.label_column(named[1])
    if named[1] is None and label in asked.names:
        label = None
    arrays = table.inputs(asked.names, label, asked.inputs[0].width)
    if (left := table.left_out(asked.names, label)) is not None:
        given.note(left)
    types = {one.name: one.dtype for one in asked.inputs}
    arrays = {
        name: array if (dtype := types[name]) is None else cast_array(array, dtype, f"{table.name}: array '{name}'")
        for name, array in arrays.items()
    }
    return Samples(table.name, arrays, table.labels(label) if asked.labelled else None)
