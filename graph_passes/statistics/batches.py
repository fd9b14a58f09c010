"""A calibration set: batches of one array for each input of the graph, the batch axis first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.runtime import Array

Batch = Mapping[str, Array]
LEAST_SAMPLES = 8  # that must differ for any statement


class LazyBatch(Mapping[str, Array]):
    """Samples that are read each time one of their arrays is asked for, and not held in memory.

    Args:
        read: gives some rows of one array of a set, by its name; called from several threads.
        names: of the arrays; each has a batch axis.
        rows: which rows of the set, shape (N,).
    """

    def __init__(self, read: Callable[[str, Array], Array], names: Sequence[str], rows: Array) -> None:
        self._read = read
        self._names = tuple(names)
        self._rows = rows

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name, self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def samples(self) -> int:
        """N; nothing is read for it."""
        return len(self._rows)

    def take(self, rows: Array | slice) -> LazyBatch:
        """Some of the samples, in the order given; nothing is read."""
        return LazyBatch(self._read, self._names, self._rows[rows])

    def joined(self, others: Sequence[Batch]) -> LazyBatch | None:
        """These samples and those of other parts of the same set; None where one of them is no such part."""
        parts = [other for other in others if isinstance(other, LazyBatch) and other._read is self._read]
        if len(parts) < len(others):
            return None
        return LazyBatch(self._read, self._names, np.concatenate([self._rows, *(part._rows for part in parts)]))


def samples_in(batch: Batch) -> int:
    """The number of samples of a batch: the length of its first array that has a batch axis."""
    if isinstance(batch, LazyBatch):
        return batch.samples
    return next((len(array) for array in batch.values() if array.ndim), 1)


def count_samples(batches: Sequence[Batch]) -> int:
    """The number of samples of a set."""
    return sum(samples_in(batch) for batch in batches)


def prescribed_batch_size(graph: gs.Graph) -> int | None:
    """The number of samples that a run of the graph takes; None where any number fits."""
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
        taken.append(take_rows(batch, slice(count)) if count < samples_in(batch) and not whole else batch)
        count -= samples_in(batch)
    return taken


def cut_batches(batches: Sequence[Batch], size: int) -> Iterator[Batch]:
    """The samples of a set in batches of at most `size`."""
    for batch in batches:
        for start in range(0, samples_in(batch), size):
            yield take_rows(batch, slice(start, start + size))


def require_different_samples(batches: Sequence[Batch], wanted: int = LEAST_SAMPLES) -> None:
    """Refuses a set of which too few samples differ: a variance over copies is that of the few that were copied.

    Raises:
        DataError: fewer than `wanted` samples differ, though there are more.
    """
    seen: set[bytes] = set()
    for batch in cut_batches(batches, wanted):
        arrays = [array for array in batch.values() if np.ndim(array)]
        for row in range(samples_in(batch)):
            seen.add(b"".join(np.asarray(array[row]).tobytes() for array in arrays))
            if len(seen) == wanted:
                return
    total = count_samples(batches)
    if len(seen) < total:
        raise DataError(
            f"only {len(seen)} of the {total} samples differ: nothing can be learnt from copies; give at least "
            f"{wanted} different samples"
        )


def take_rows(batch: Batch, rows: Array | slice) -> Batch:
    """Some samples of a batch, in the order given; an array without a batch axis stays whole."""
    if isinstance(batch, LazyBatch):
        return batch.take(rows)
    return {name: array[rows] if np.ndim(array) else array for name, array in batch.items()}


def join_batches(batches: Sequence[Batch]) -> Batch:
    """All batches as one; parts of a lazy set stay unread."""
    first, *others = batches
    if not others:
        return first
    if isinstance(first, LazyBatch) and (whole := first.joined(others)) is not None:
        return whole
    return {
        name: np.concatenate([batch[name] for batch in batches]) if np.ndim(array) else array
        for name, array in first.items()
    }
