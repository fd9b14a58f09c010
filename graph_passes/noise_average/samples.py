"""A calibration set in an order of its own: the same samples give the same bits, however they came.

Samples are ordered by a digest of their values and cut into runs whose size depends on the data alone. What follows
from a set then depends neither on the order of its samples, nor on the batches that they came in, nor on the memory at
hand. The digest also seeds the noise of a sample; the second of two equal samples has another noise than the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.measurement.measurement import run_size
from vsfix.graph_passes.statistics.batches import Batch, cut_batches, join_batches, samples_in, take_rows

_WORDS = 4  # of 32 bits: the digest of a sample


@dataclass(frozen=True)
class SampleSet:
    """Samples in their own order.

    Attributes:
        batches: in runs of one size, the last one may be smaller.
        keys: of each sample, words that seed its noise.
        copies: how many samples were left out as copies of others.
    """

    batches: tuple[Batch, ...]
    keys: tuple[tuple[int, ...], ...]
    copies: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is to be said of copies."""
        if not self.copies:
            return ()
        return (f"{self.copies} of {len(self) + self.copies} samples were left out: they are copies of others",)

    @property
    def first(self) -> tuple[int, ...]:
        """The number of the first sample of each batch."""
        sizes = [samples_in(batch) for batch in self.batches]
        return (0, *np.cumsum(sizes)[:-1].tolist())

    @classmethod
    def of(cls, batches: Sequence[Batch], prescribed: int | None = None) -> SampleSet:
        """Orders the samples of a set.

        Args:
            batches: one array for each graph input, batch first.
            prescribed: the batch size that the graph takes; None where any fits.

        Raises:
            DataError: no samples.
        """
        if not batches:
            raise DataError("the calibration set is empty; give at least one sample")
        whole = join_batches(batches)
        parts = cut_batches([whole], run_size([whole]))
        digests = [digest for part in parts for digest in digests_of(part)]
        order = sorted(range(len(digests)), key=digests.__getitem__)
        seen: Counter[tuple[int, ...]] = Counter()
        keys = []
        for row in order:
            keys.append((*digests[row], seen[digests[row]]))
            seen[digests[row]] += 1
        ordered = take_rows(whole, np.asarray(order))
        return cls(tuple(cut_batches([ordered], prescribed or run_size([ordered]))), tuple(keys))

    def without_copies(self, prescribed: int | None = None) -> SampleSet:
        """The same without the samples that are copies of others: no sample then judges what its twin was fitted to.

        Args:
            prescribed: the batch size that the graph takes; copies stay where one batch can't be filled without them.
        """
        own = np.array([key[-1] == 0 for key in self.keys])
        if own.all():
            return self
        if prescribed:
            kept = int(own.sum()) // prescribed * prescribed
            own = own & (np.cumsum(own) <= kept) if kept else np.arange(len(own)) < prescribed
        numbers = np.flatnonzero(own)
        part = take_rows(self.joined(), numbers)
        batches = tuple(cut_batches([part], prescribed or run_size([part])))
        return SampleSet(batches, tuple(self.keys[number] for number in numbers), len(own) - len(numbers))

    def first_of(self, most: int, prescribed: int | None = None) -> SampleSet:
        """As many samples as are wanted at most: a random part, for a digest orders them.

        Args:
            most: how many; at least one batch of a prescribed size is taken.
            prescribed: the batch size that the graph takes.
        """
        if len(self) <= most:
            return self
        kept = max(most // prescribed * prescribed, prescribed) if prescribed else most
        return replace(self.rows(np.arange(len(self)) < kept), copies=self.copies)

    def joined(self) -> Batch:
        """All samples as one batch."""
        return join_batches(self.batches)

    def rows(self, chosen: Array) -> SampleSet:
        """Some of the samples, in the same order.

        Args:
            chosen: shape (N,), true for those that are taken.
        """
        numbers = np.flatnonzero(chosen)
        part = take_rows(self.joined(), numbers)
        size = max(samples_in(batch) for batch in self.batches)
        return SampleSet(tuple(cut_batches([part], size)), tuple(self.keys[number] for number in numbers))


def held_out_rows(samples: int, share: int = 3) -> Array:
    """One in `share` samples of a set, shape (N,), of bools; none of fewer than `share`."""
    rows: Array = np.arange(samples) % share == share - 1
    return rows


def digests_of(batch: Batch) -> Iterator[tuple[int, ...]]:
    """What tells each sample of a batch from others: words of 32 bits, the same wherever the sample stands."""
    arrays = [array for _, array in sorted(batch.items()) if np.ndim(array)]
    for row in range(samples_in(batch)):
        digest = blake2b(digest_size=4 * _WORDS)
        for array in arrays:
            digest.update(np.ascontiguousarray(array[row]).tobytes())
        yield tuple(int(word) for word in np.frombuffer(digest.digest(), dtype="<u4"))
