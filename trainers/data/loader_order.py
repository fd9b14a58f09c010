"""The order in which a DataLoader is read: at random, where it would give its data set in the order of its rows.

Sets of images are often ordered by class, so that the first batches of such a loader show a few classes alone. torch is
not imported here: where nobody has, there is no DataLoader.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from typing import Any, cast

import numpy as np

_SEEDS = 2**32  # that the global generator of numpy takes


def shuffled_loader(loader: Iterable[Any], seed: int) -> Iterable[Any]:
    """The batches of a DataLoader with the rows of its data set in a random order.

    Args:
        loader: of any type.
        seed: of the order; the same seed gives the same one.

    Returns:
        A DataLoader with the data set, the size of a batch, the collation and the workers of the one that is given. The
        one that is given, where it draws at random already, where its order is its own affair (a sampler or a batch
        sampler of another type, a data set without rows, a class that iterates in another way), and what is no
        DataLoader.
    """
    torch_data: Any = sys.modules.get("torch.utils.data")
    known: Any = loader
    if torch_data is None or not isinstance(known, torch_data.DataLoader):
        return loader
    if type(known).__iter__ is not torch_data.DataLoader.__iter__ or not hasattr(known.dataset, "__getitem__"):
        return loader
    batches = known.batch_sampler
    if batches is not None and type(batches) is not torch_data.BatchSampler:
        return loader
    sampler = known.sampler if batches is None else batches.sampler
    if not _is_sequential(sampler, torch_data.SequentialSampler):
        return loader
    rows = np.random.default_rng(seed).permutation(np.array(list(sampler), np.int64)).tolist()
    options: dict[str, Any] = {"collate_fn": known.collate_fn, "num_workers": known.num_workers}
    options |= {name: getattr(known, name) for name in ("timeout", "worker_init_fn", "multiprocessing_context")}
    options["generator"] = sys.modules["torch"].Generator().manual_seed(seed % _SEEDS)  # not the one of the process
    if batches is None:  # each row of the data set is a batch
        shuffled = torch_data.DataLoader(known.dataset, batch_size=None, sampler=rows, **options)
    else:
        parts = [rows[start : start + batches.batch_size] for start in range(0, len(rows), batches.batch_size)]
        if batches.drop_last and parts and len(parts[-1]) < batches.batch_size:
            parts.pop()
        shuffled = torch_data.DataLoader(known.dataset, batch_sampler=parts, **options)
    return cast("Iterable[Any]", shuffled)


def seeded_batches(loader: Iterable[Any], seed: int) -> Iterator[Any]:
    """The batches of `shuffled_loader`, the same each time that they are asked for; no random generator is moved.

    While a batch is made the random generators of torch's CPU, numpy and `random` are seeded, so that the order of a
    loader that shuffles, and the random crops of its data set, come out the same. What is no DataLoader is read as it
    is.

    Args:
        loader: of any type.
        seed: of the order and of what is drawn.

    Returns:
        What the loader gives. A generator can be read on after it.
    """
    torch_data: Any = sys.modules.get("torch.utils.data")
    is_loader = torch_data is not None and isinstance(loader, torch_data.DataLoader)
    return _seeded_batches(loader, seed) if is_loader else iter(loader)


def _seeded_batches(loader: Iterable[Any], seed: int) -> Iterator[Any]:
    """The batches of a DataLoader."""
    with _seeded(loader, seed):
        batches = iter(shuffled_loader(loader, seed))
    for number in count(1):
        with _seeded(loader, seed + number):
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch


@contextmanager
def _seeded(loader: Any, seed: int) -> Iterator[None]:
    """The global random generators of the CPU and those of a DataLoader, seeded for a while and then as they were."""
    torch: Any = sys.modules["torch"]
    parts = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    own = [found for part in parts if isinstance(found := getattr(part, "generator", None), torch.Generator)]
    generators = list({id(generator): generator for generator in [torch.default_generator, *own]}.values())
    states = [generator.get_state() for generator in generators]
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        for generator in generators:
            generator.manual_seed(seed % _SEEDS)
        random.seed(seed)
        np.random.seed(seed % _SEEDS)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _is_sequential(sampler: Any, sequential: type) -> bool:
    """Whether it gives rows from the first on, one after the other."""
    if isinstance(sampler, (list, tuple)):
        return all(later > earlier for earlier, later in pairwise(sampler))
    return isinstance(sampler, (sequential, range))
