"""The order in which a DataLoader is read: random, repeatable, and without a trace in any generator."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from vsfix.trainers.data.loader_order import shuffled_loader

ROWS = TensorDataset(torch.arange(60))


class Noisy(torch.utils.data.Dataset):
    """Rows to which the data set itself adds what is random."""

    def __len__(self):
        return 20

    def __getitem__(self, row):
        return row + torch.rand(1).item() + random.random() + np.random.rand()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(60))


ORDERED = {
    "plain": lambda: DataLoader(ROWS, batch_size=8),
    "batch sampler": lambda: DataLoader(ROWS, batch_sampler=BatchSampler(SequentialSampler(ROWS), 8, False)),
    "range": lambda: DataLoader(ROWS, batch_size=8, sampler=range(60)),
    "array": lambda: DataLoader(ROWS, batch_size=8, sampler=np.arange(60)),
    "shuffled": lambda: DataLoader(ROWS, batch_size=8, shuffle=True),
    "with a generator": lambda: DataLoader(ROWS, batch_size=8, shuffle=True, generator=torch.Generator()),
    "no batches": lambda: DataLoader(ROWS, batch_size=None),
    "sampler of batches": lambda: DataLoader(ROWS, sampler=BatchSampler(range(60), 8, False), batch_size=None),
}


def rows(loader, seed=0) -> list[int]:
    return [int(row) for (batch,) in shuffled_loader(loader, seed) for row in np.atleast_1d(batch)]


@pytest.mark.parametrize("name", ORDERED)
def test_every_row_comes_once_in_an_order_that_the_seed_gives(name):
    found = rows(ORDERED[name]())
    assert sorted(found) == list(range(60))
    assert np.mean(np.abs(np.diff(found)) == 1) < 0.3
    assert rows(ORDERED[name]()) == found
    assert rows(ORDERED[name](), seed=1) != found


@pytest.mark.parametrize("name", ORDERED)
def test_no_generator_is_moved(name):
    loader = ORDERED[name]()
    given = loader.generator.get_state() if loader.generator is not None else torch.empty(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = rows(loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])
    assert loader.generator is None or torch.equal(loader.generator.get_state(), given)
    torch.rand(3)
    assert rows(loader) == first


def test_what_the_data_set_draws_is_repeated():
    first, again, other = (torch.cat(list(shuffled_loader(DataLoader(Noisy(), 4), seed))) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first.sort().values, other.sort().values)
    assert len(set((first % 1).tolist())) == 20


def test_a_choice_of_rows_stays_that_choice():
    assert sorted(rows(DataLoader(ROWS, batch_size=8, sampler=range(10, 20)))) == list(range(10, 20))
    drawn = rows(DataLoader(ROWS, 8, sampler=WeightedRandomSampler([0.0] * 50 + [1.0] * 10, 30)))
    assert len(drawn) == 30
    assert min(drawn) >= 50


def test_batches_of_the_user_stay_whole_and_come_in_another_order():
    grouped = [list(range(start, start + 6)) for start in range(0, 60, 6)]
    found = [batch.tolist() for (batch,) in shuffled_loader(DataLoader(ROWS, batch_sampler=grouped), 0)]
    assert found != grouped
    assert sorted(found) == grouped


def test_what_has_no_order_is_read_as_it_comes():
    assert torch.cat(list(shuffled_loader(DataLoader(Stream(), batch_size=8), 0))).tolist() == list(range(60))
    assert list(shuffled_loader([1, 2], 0)) == [1, 2]
    assert [batch.tolist() for batch in shuffled_loader(DataLoader([1, 2], sampler=iter([1, 0])), 0)] == [[2], [1]]
