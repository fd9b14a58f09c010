"""The samples that a model is fed with, for calibration and for a measurement of accuracy.

What is read, and how, stands in `loading`.
"""

from __future__ import annotations

import logging
import sys

import onnx

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.io.model_file import read_metadata
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.trainers.data.preprocessing import METADATA_KEY, Preprocessing

from .data_forms import Data, data_text
from .fitting import ModelInput
from .loading import load_samples
from .samples import Samples
from .tables import table_file

_logger = logging.getLogger(__name__)


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
        inputs=model_inputs(model),
    ).lazily()
    fixed = fixed_batch_size(model)
    if fixed is None:
        return list(loaded.batches(batch_size))
    if len(loaded) < fixed:
        raise DataError(f"{loaded.name}: the model takes batches of exactly {fixed}; {len(loaded)} samples are too few")
    whole = len(loaded) // fixed * fixed
    if whole < len(loaded):
        _logger.warning("the model takes batches of exactly %d: %d samples are left out", fixed, len(loaded) - whole)
    return list(loaded.batches(fixed))[: whole // fixed]


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
        raise DataError(f"{loaded.name}: {no_labels(data)}")
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
    return load_samples(
        data,
        split=split,
        preprocessing=read_preprocessing(model),
        input_names=model_input_names(model),
        samples=samples,
        seed=seed,
        max_memory=max_memory,
        inputs=model_inputs(model),
    )


def no_labels(data: Data) -> str:
    """What is missing where labels are needed, and where they go."""
    text = data_text(data) or ""
    if table_file(text) is not None:
        return "has no column 'label', 'labels' or 'target'; name the one that is, as FILE.csv:label=price"
    where = "; they go beside the inputs into an .npz file" if text.endswith(".npy") else ""
    return (
        "has no array 'labels': a whole number for the class of each sample, or numbers of the output's shape" + where
    )


def read_preprocessing(model: onnx.ModelProto) -> Preprocessing | None:
    """The preprocessing that a model's metadata states for its input; None where it states none.

    Raises:
        InputError: the entry is there, but can't be read.
    """
    text = read_metadata(model).get(METADATA_KEY)
    return None if text is None else Preprocessing.from_json(text)


def model_inputs(model: onnx.ModelProto) -> list[ModelInput]:
    """What a model says of the inputs that must be fed."""
    names = set(model_input_names(model))
    return [_model_input(value) for value in model.graph.input if value.name in names]


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


def _model_input(value: onnx.ValueInfoProto) -> ModelInput:
    """What a model says of one input."""
    tensor = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    except KeyError:  # of another version of onnx
        dtype = None
    sides = [side.dim_value for side in tensor.shape.dim]  # 0 where any length fits
    return ModelInput(value.name, dtype, tuple(sides[1:]) if tensor.HasField("shape") and sides else None)
