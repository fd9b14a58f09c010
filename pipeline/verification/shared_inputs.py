"""Inputs that several models are fed alike: the same names, a batch size that all take, whole batches."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.data.samples import Samples

from .model_description import ModelDescription

_logger = logging.getLogger(__name__)


def require_same_inputs(model: ModelDescription, other: ModelDescription) -> None:
    """Refuses two models that can't be fed the same arrays.

    Raises:
        InputError: other names, or several inputs where the other takes one.
    """
    for one, two in ((model, other), (other, model)):
        if two.kind == "checkpoint" and len(one.input_names) > 1:
            raise InputError(f"{one.path}: has the inputs {', '.join(one.input_names)}, but {two.path} takes one image")
    if model.input_names and other.input_names and set(model.input_names) != set(other.input_names):
        raise InputError(
            f"{model.path}: has the inputs {', '.join(model.input_names)}, but {other.path} has "
            f"{', '.join(other.input_names)}; give two models that take the same inputs"
        )


def shared_batch_size(wanted: int, files: Sequence[ModelDescription]) -> int:
    """The samples of a run that every file takes, as near to what is wanted as can be.

    Raises:
        InputError: two files of which one takes none of the batch sizes of the other.
    """
    narrow = max(files, key=lambda found: found.smallest_batch)
    wide = min(files, key=lambda found: found.largest_batch or sys.maxsize)
    if wide.largest_batch is not None and wide.largest_batch < narrow.smallest_batch:
        raise InputError(
            f"{narrow.path} takes batches from {narrow.smallest_batch} on, {wide.path} up to {wide.largest_batch}: "
            "they can't be fed the same"
        )
    return max(narrow.smallest_batch, min(wanted, wide.largest_batch or wanted))


def whole_batches(samples: Samples, size: int, files: Sequence[ModelDescription]) -> Samples:
    """The samples without the last batch, where that is smaller than a file takes.

    Too few samples for an engine are left to the engine, which says what it was built for.
    """
    smallest = max(found.smallest_batch for found in files)
    rest = len(samples) % size
    if rest == 0 or rest >= smallest:
        return samples
    if rest == len(samples):
        if any(found.smallest_batch > rest and found.kind != "engine" for found in files):
            raise InputError(f"{samples.name}: {rest} samples do not fill the batch of {smallest} that the model takes")
        return samples
    _logger.warning("the last %d samples fill no batch of %d and are left out", rest, smallest)
    return samples.first(len(samples) - rest)
