"""The order in which a DataLoader is read: at random, where it would give its data set in the order of its rows.

Sets of images are often ordered by class, so that the first batches of such a loader show a few classes alone. torch is
not imported here: where nobody has, there is no DataLoader.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, cast

import numpy as np


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
    if torch_data is None or not isinstance(loader, torch_data.DataLoader):
        return loader
    known = cast("Any", loader)
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
    options["generator"] = sys.modules["torch"].Generator().manual_seed(seed)  # not the one of the process
    if batches is None:  # each row of the data set is a batch
        shuffled = torch_data.DataLoader(known.dataset, batch_size=None, sampler=rows, **options)
    else:
        parts = [rows[start : start + batches.batch_size] for start in range(0, len(rows), batches.batch_size)]
        if batches.drop_last and parts and len(parts[-1]) < batches.batch_size:
            parts.pop()
        shuffled = torch_data.DataLoader(known.dataset, batch_sampler=parts, **options)
    return cast("Iterable[Any]", shuffled)


def _is_sequential(sampler: Any, sequential: type) -> bool:
    """Whether it gives rows from the first on, one after the other."""
    if isinstance(sampler, (list, tuple)):
        return all(later > earlier for earlier, later in pairwise(sampler))
    return isinstance(sampler, (sequential, range))
