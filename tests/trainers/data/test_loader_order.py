from __future__ import annotations

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

from vsfix.trainers.data.loader_order import shuffled_loader

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
