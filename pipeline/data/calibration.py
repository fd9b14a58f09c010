"""The samples that a model is fed with, for calibration and for verification, from data in any form.

A named data set is images, and becomes input by the preprocessing that the model itself carries. An `.npz` file is
input already: one array for each model input, by its name, batch first, and optionally `labels`. So is what
Python gives (see `data_forms`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import onnx

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.io.model_file import read_metadata
from vsfix.graph_passes.io.named_file import user_path
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch, LazyBatch, samples_in, take_rows
from vsfix.trainers.data.datasets import DEFAULT_SIZE, Split, load_dataset
from vsfix.trainers.data.npz_file import read_npz
from vsfix.trainers.data.preprocessing import METADATA_KEY, Preprocessing

from .data_forms import Data, data_text, read_data
from .samples import LABELS, Samples, check_array, choose_rows, other_targets

HELD = 8  # this part of the memory may hold a decoded set; a larger one is decoded run by run
_logger = logging.getLogger(__name__)


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
) -> Samples:
    """Loads data in any form.

    Args:
        data: a text as `load_dataset` takes it, but that a path that ends in `.npz` is a file of model inputs; or data
            in one of the forms of `data_forms`.
        split: `train` or `test`; an `.npz` file has no parts.
        preprocessing: what the model says about its input; needed for a named data set.
        input_names: the inputs of the model.
        samples: how many to choose at random; None takes all, in their order.
        seed: of the choice.
        at_most: fewer than `samples` are as good, and no warning.
        max_memory: bytes that the process may hold; images that would take too much of it are decoded each time when
            they are asked for. None decodes them at once.
        labelled: read the labels where there are some; else they are not looked at.

    Raises:
        InputError: unknown data, a missing file, or a named data set for a model that says nothing of its input.
        DataError: data that is empty, has other arrays than the model needs, or is not finite.
    """
    spec = data_text(data)
    if spec is None:
        return read_data(
            data, input_names, samples=samples, seed=seed, at_most=at_most, max_memory=max_memory, labelled=labelled
        )
    if spec.endswith(".npz"):
        found = _from_npz(user_path(spec), input_names, labelled)
        return found.subset(_no_more(samples, len(found), at_most), seed=seed)
    size = DEFAULT_SIZE if preprocessing is None else preprocessing.size
    dataset = load_dataset(spec, cast("Split", split), size=size)
    if preprocessing is None:
        raise InputError(
            f"data '{spec}': the model does not say how its images are preprocessed; give an .npz file with its "
            "inputs, or a model that `vsfix export` wrote"
        )
    if len(input_names) != 1:
        raise InputError(
            f"data '{spec}': holds one image per sample, but the model has the inputs {', '.join(input_names)}; "
            "give an .npz file"
        )
    samples = _no_more(samples, len(dataset.images), at_most)
    total = len(dataset.images)
    rows = np.arange(total) if samples is None else choose_rows(total, samples, seed, dataset.name)
    (name,) = input_names

    def decode(_: str, chosen: Array) -> Array:
        array = preprocessing.apply(dataset.images[chosen])
        check_array(f"{dataset.name}: array '{name}'", array)
        return array

    inputs = LazyBatch(decode, input_names, rows)
    decoded = len(rows) * int(np.prod(dataset.images.shape[1:])) * np.dtype(np.float32).itemsize
    is_held = max_memory is None or decoded <= max_memory // HELD
    return Samples(dataset.name, dict(inputs) if is_held else inputs, dataset.labels[rows], split)


@stage("reading the data")
def calibration_batches(
    model: onnx.ModelProto,
    data: Data,
    *,
    samples: int | None,
    batch_size: int,
    seed: int,
    at_most: bool = False,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> list[Batch]:
    """The calibration set of a model, without labels, from the training part of a named data set or from other data.

    Args:
        model: says its inputs, their preprocessing, and whether it prescribes a batch size.
        data: see `load_samples`.
        samples: how many to choose at random, or to draw where it is read batch by batch; None takes all.
        batch_size: samples per batch, where the model leaves that open.
        seed: of the choice.
        at_most: fewer than `samples` are as good, and no warning.
        max_memory: see `load_samples`.

    Raises:
        InputError, DataError: see `load_samples`; too few samples for one batch of a prescribed size.
    """
    loaded = load_samples(
        data,
        split="train",
        preprocessing=read_preprocessing(model),
        input_names=model_input_names(model),
        samples=sys.maxsize if samples is None else samples,  # all, but not in their order
        seed=seed,
        at_most=at_most or samples is None,
        max_memory=max_memory,
        labelled=False,
    ).lazily()
    _require_fitting(model, loaded)
    fixed = fixed_batch_size(model)
    if fixed is None:
        return list(loaded.batches(batch_size))
    if len(loaded) < fixed:
        raise DataError(f"{loaded.name}: the model takes batches of exactly {fixed}; {len(loaded)} samples are too few")
    whole = len(loaded) // fixed * fixed
    if whole < len(loaded):
        _logger.warning("the model takes batches of exactly %d: %d samples are left out", fixed, len(loaded) - whole)
    return list(loaded.batches(fixed))[: whole // fixed]


@stage("reading the labelled data")
def labelled_samples(
    model: onnx.ModelProto,
    data: Data,
    *,
    split: str,
    seed: int,
    samples: int | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> Samples:
    """Samples that have labels, for a measurement of accuracy; see `load_samples`.

    Raises:
        DataError: no labels; also see `load_samples`.
        InputError: see `load_samples`.
    """
    loaded = evaluation_samples(model, data, split=split, seed=seed, samples=samples, max_memory=max_memory)
    if loaded.labels is None:
        raise DataError(
            f"{loaded.name}: has no array 'labels': a whole number for the class of each sample, or numbers of the "
            "output's shape"
        )
    return loaded


@stage("reading the labelled data")
def evaluation_samples(
    model: onnx.ModelProto,
    data: Data,
    *,
    split: str,
    seed: int,
    samples: int | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> Samples:
    """Samples with the labels and other targets that the data has; see `load_samples`.

    Raises:
        InputError, DataError: see `load_samples`.
    """
    loaded = load_samples(
        data,
        split=split,
        preprocessing=read_preprocessing(model),
        input_names=model_input_names(model),
        samples=samples,
        seed=seed,
        max_memory=max_memory,
    )
    _require_fitting(model, loaded)
    return loaded


def read_preprocessing(model: onnx.ModelProto) -> Preprocessing | None:
    """The preprocessing that a model's metadata states for its input; None where it states none.

    Raises:
        InputError: the entry is there, but can't be read.
    """
    text = read_metadata(model).get(METADATA_KEY)
    return None if text is None else Preprocessing.from_json(text)


def model_input_names(model: onnx.ModelProto) -> list[str]:
    """The inputs that must be fed. Before IR version 4 every weight is listed as an input too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [tensor.name for tensor in model.graph.input if tensor.name not in weights]


def fixed_batch_size(model: onnx.ModelProto) -> int | None:
    """The batch size that a model prescribes; None where any fits."""
    names = set(model_input_names(model))
    sizes = {
        tensor.type.tensor_type.shape.dim[0].dim_value
        for tensor in model.graph.input
        if tensor.name in names and tensor.type.tensor_type.shape.dim
    } - {0}
    return min(sizes) if sizes else None


def _no_more(samples: int | None, total: int, at_most: bool) -> int | None:
    """The number to choose, where fewer are as good."""
    return min(samples, total) if at_most and samples is not None else samples


def _from_npz(path: Path, input_names: Sequence[str], labelled: bool) -> Samples:
    """All samples of an `.npz` file."""
    arrays = read_npz(path)
    for name in input_names:
        if name not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise DataError(f"{path}: has no array '{name}', which the model needs; it holds {found}")
    inputs = {name: arrays[name] for name in input_names}
    labels = arrays.get(LABELS) if labelled and LABELS not in input_names else None
    targets = other_targets(arrays, input_names, samples_in(inputs), lambda array, _: array) if labelled else {}
    return Samples(str(path), inputs, labels, targets=targets)


def _require_fitting(model: onnx.ModelProto, loaded: Samples) -> None:
    """Refuses data of another type or shape than the model states for its inputs."""
    one = dict(take_rows(loaded.inputs, slice(1)))
    for value in model.graph.input:
        array, tensor = one.get(value.name), value.type.tensor_type
        if array is None:
            continue
        what = f"{loaded.name}: array '{value.name}'"
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else array.dtype
        if array.dtype != dtype:
            raise DataError(f"{what} is {array.dtype}, the model takes {dtype}; convert it with numpy's astype")
        if not tensor.HasField("shape"):
            continue
        stated = [side.dim_value for side in tensor.shape.dim]  # 0 where any length fits
        sides = zip(array.shape[1:], stated[1:], strict=False)
        if len(stated) != array.ndim or any(wanted not in (0, side) for side, wanted in sides):
            wanted = "x".join(str(side or "?") for side in stated[1:])
            raise DataError(
                f"{what} has samples of {'x'.join(map(str, array.shape[1:])) or 'no axes'}, the model takes {wanted}"
            )
