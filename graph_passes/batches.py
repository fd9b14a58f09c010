"""A calibration set: batches of one array for each input of the graph, the batch axis first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from .errors import DataError
from .inference import Array

Batch = Mapping[str, Array]
LEAST_SAMPLES = 8  # that must differ for any statement


def samples_in(batch: Batch) -> int:
    """The number of samples of a batch: the length of its first array that has a batch axis."""
    return next((len(array) for array in batch.values() if array.ndim), 1)


def count_samples(batches: Sequence[Batch]) -> int:
    """The number of samples of a set."""
    return sum(samples_in(batch) for batch in batches)


def prescribed_batch_size(graph: gs.Graph) -> int | None:
    """How many samples a run of the graph takes; None where any number fits."""
    sizes = [tensor.shape[0] for tensor in graph.inputs if tensor.shape]
    return min((size for size in sizes if isinstance(size, int)), default=None)


def first_samples(batches: Sequence[Batch], count: int, *, whole: bool = False) -> list[Batch]:
    """The first `count` samples of a set, in batches that are cut nowhere but at the end.

    Args:
        batches: the set.
        count: how many.
        whole: cut no batch at all, and take a few more; for a graph that prescribes its batch size.
    """
    taken: list[Batch] = []
    for batch in batches:
        if count <= 0:
            break
        taken.append(_rows(batch, 0, count) if count < samples_in(batch) and not whole else batch)
        count -= samples_in(batch)
    return taken


def cut_batches(batches: Sequence[Batch], size: int) -> Iterator[Batch]:
    """The same samples in batches of at most `size`."""
    for batch in batches:
        for start in range(0, samples_in(batch), size):
            yield _rows(batch, start, start + size)


def require_different_samples(batches: Sequence[Batch], wanted: int = LEAST_SAMPLES) -> None:
    """Refuses a set of which too few samples differ: a variance over copies is that of the few that were copied.

    Raises:
        DataError: fewer than `wanted` samples differ, though there are more.
    """
    seen: set[bytes] = set()
    for batch in batches:
        for row in range(samples_in(batch)):
            seen.add(b"".join(np.asarray(array[row]).tobytes() for array in batch.values() if np.ndim(array)))
            if len(seen) == wanted:
                return
    total = count_samples(batches)
    if len(seen) < total:
        raise DataError(
            f"only {len(seen)} of the {total} samples differ: nothing can be learnt from copies; give at least "
            f"{wanted} different samples"
        )


def _rows(batch: Batch, start: int, stop: int) -> dict[str, Array]:
    """Some samples of a batch; what has no batch axis stays whole."""
    return {name: array[start:stop] if np.ndim(array) else array for name, array in batch.items()}
