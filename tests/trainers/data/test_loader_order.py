from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from vsfix.trainers.data.loader_order import seeded_batches, shuffled_loader

ROWS = TensorDataset(torch.arange(20.0))


def read(loader):
    return [batch.tolist() if isinstance(batch, torch.Tensor) else batch[0].tolist() for batch in loader]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 8},
        {"batch_size": 8, "sampler": range(20)},
        {"batch_size": 8, "sampler": list(range(20))},
        {"batch_size": 8, "sampler": SequentialSampler(ROWS)},
        {"batch_sampler": BatchSampler(SequentialSampler(ROWS), 8, drop_last=False)},
        {"batch_sampler": BatchSampler(range(20), 8, drop_last=False)},
    ],
)
def test_a_loader_that_reads_from_the_first_row_on_is_read_at_random(options):
    loader = DataLoader(ROWS, **options)
    batches = read(shuffled_loader(loader, 0))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(20)) != rows
    assert read(shuffled_loader(loader, 0)) == batches
    assert read(shuffled_loader(loader, 1)) != batches


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(ROWS, 8, shuffle=True),
        DataLoader(ROWS, 8, sampler=RandomSampler(ROWS)),
        DataLoader(ROWS, 8, sampler=[3, 1, 2]),
        DataLoader(ROWS, batch_sampler=[[3, 1], [2, 0]]),
        DataLoader(ROWS, batch_sampler=BatchSampler(RandomSampler(ROWS), 8, drop_last=False)),
        DataLoader(type("Stream", (IterableDataset,), {"__iter__": lambda self: iter(range(3))})(), 2),
        type("Other", (DataLoader,), {"__iter__": lambda self: iter(())})(ROWS, 8),
        [torch.zeros(2)],
    ],
)
def test_an_order_that_is_random_or_unknown_stays(loader):
    assert shuffled_loader(loader, 0) is loader


def test_the_rest_of_the_loader_stays():
    part = Subset(ROWS, range(10, 20))
    batches = list(shuffled_loader(DataLoader(part, 4, drop_last=True, collate_fn=len), 0))
    assert batches == [4, 4]
    assert sorted(read(shuffled_loader(DataLoader(part, batch_size=None), 0))) == list(range(10, 20))


def test_the_generator_of_the_process_stays():
    before = torch.get_rng_state()
    list(shuffled_loader(DataLoader(ROWS, 4), 0))
    assert torch.equal(before, torch.get_rng_state())


class Noisy(torch.utils.data.Dataset):
    """Rows to which the data set itself adds what is random."""

    def __len__(self):
        return 20

    def __getitem__(self, row):
        return row + (torch.rand(1).item() + random.random() + np.random.rand()) / 3


RANDOM = {
    "sequential": lambda: DataLoader(Noisy(), 4),
    "shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "with a generator": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "sampler of batches": lambda: DataLoader(Noisy(), batch_sampler=BatchSampler(RandomSampler(Noisy()), 4, False)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_seed_alone_says_what_a_loader_gives(name):
    loader = RANDOM[name]()
    generators = [torch.default_generator, *([loader.generator] if loader.generator else [])]
    before = [generator.get_state() for generator in generators], random.getstate(), np.random.get_state()[1].copy()
    first = torch.cat(list(seeded_batches(loader, 0)))
    assert all(torch.equal(a.get_state(), b) for a, b in zip(generators, before[0], strict=True))
    assert random.getstate() == before[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])
    assert sorted(first.long().tolist()) == list(range(20))
    assert len(set((first % 1).tolist())) == 20
    torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(torch.cat(list(seeded_batches(loader, 0))), first)
    assert not torch.equal(torch.cat(list(seeded_batches(loader, 1))), first)


def test_what_is_no_loader_is_read_as_it_is():
    given = (number for number in range(3))
    assert next(seeded_batches(given, 0)) == 0
    assert list(seeded_batches(given, 0)) == [1, 2]
