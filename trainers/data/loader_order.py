"""The batches of a DataLoader in a random order, the same with each seed, and no trace left in any random generator.

A calibration set must be a random choice, and sets of images are ordered by their classes. So the rows that the
loader's sampler names are shuffled, whichever they are: a shuffled order stays one. What can't be listed is read as it
is: an IterableDataset, a sampler that has no length. Each batch is made with the generators of torch, numpy and
`random` seeded, so that random crops come out the same as well.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import numpy as np

_MOST = 2**32  # seeds of numpy's global generator


def shuffled_loader(loader: Iterable[Any], seed: int) -> Iterator[Any]:
    """The batches of a DataLoader in a random order; those of anything else as they come.

    Args:
        loader: a `torch.utils.data.DataLoader`, or any iterable. A last batch that is not full is given too.
        seed: of the order, and of what the data set draws at random.

    Yields:
        What the loader collates.
    """
    torch_data: Any = sys.modules.get("torch.utils.data")  # without it there is no DataLoader
    if torch_data is None or not isinstance(loader, torch_data.DataLoader):
        yield from loader
        return
    with _seeded(loader, seed):
        batches = iter(_reordered(loader, seed))
    for number in count(1):
        with _seeded(loader, seed + number):
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch


def _reordered(loader: Any, seed: int) -> Any:
    """A DataLoader of the same data set whose rows are shuffled; the loader itself where they can't be listed."""
    torch_data: Any = sys.modules["torch.utils.data"]
    dataset, shuffle = loader.dataset, np.random.default_rng(seed).permutation
    if isinstance(dataset, torch_data.IterableDataset) or type(loader).__iter__ is not torch_data.DataLoader.__iter__:
        return loader
    batched = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    regrouped = type(batched) is torch_data.BatchSampler
    try:
        listed = _listed(batched.sampler if regrouped else batched)
    except TypeError:  # no length
        return loader
    order = [listed[place] for place in shuffle(len(listed))]
    if regrouped:  # batches of other rows; those of a sampler of the user's stay as they were grouped
        order = [order[start : start + batched.batch_size] for start in range(0, len(order), batched.batch_size)]
    return torch_data.DataLoader(
        dataset,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=sys.modules["torch"].Generator().manual_seed(seed),
        prefetch_factor=loader.prefetch_factor,
        **({"batch_sampler": order} if loader.batch_sampler is not None else {"batch_size": None, "sampler": order}),
    )


def _listed(sampler: Any) -> list[Any]:
    """The rows, or batches of rows, that a sampler names in one pass.

    Raises:
        TypeError: it has no length, and may not end.
    """
    return [int(row) if hasattr(row, "item") else row for row in islice(sampler, len(sampler))]


@contextmanager
def _seeded(loader: Any, seed: int) -> Iterator[None]:
    """The global random generators of the CPU and those of the loader, seeded for a while."""
    torch: Any = sys.modules["torch"]
    samplers = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    found = [
        generator for part in samplers if isinstance(generator := getattr(part, "generator", None), torch.Generator)
    ]
    generators = list({id(generator): generator for generator in [torch.default_generator, *found]}.values())
    states = [generator.get_state() for generator in generators]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        for generator in generators:
            generator.manual_seed(seed % _MOST)
        random.seed(seed)
        np.random.seed(seed % _MOST)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(of_python)
        np.random.set_state(of_numpy)
