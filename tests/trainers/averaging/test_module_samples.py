from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vsfix.graph_passes.errors import DataError
from vsfix.trainers.averaging.module_samples import ModuleSamples, keys_of, named_outputs, state_kept


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, image, mask, scale=None):
        return self.linear(image) * mask


X, MASK, LABELS = torch.rand(10, 2), torch.rand(10, 1), torch.arange(10)


def called(data):
    """The rows of all samples as the module gets them, sorted."""
    args, kwargs = data.call(data.samples.joined())
    return sorted(map(tuple, torch.cat([*args, *kwargs.values()], 1).tolist()))


ROWS = sorted(map(tuple, X.tolist()))
BOTH = sorted(map(tuple, torch.cat([X, MASK], 1).tolist()))


@pytest.mark.parametrize(
    ("module", "loader", "rows"),
    [
        (nn.Linear(2, 1), [X[:4], X[4:]], ROWS),
        (nn.Linear(2, 1), [(X, LABELS)], ROWS),
        (nn.Linear(2, 1), [[X]], ROWS),
        (nn.Linear(2, 1), [X.numpy()], ROWS),
        (nn.Linear(2, 1), DataLoader(TensorDataset(X, LABELS), 3, shuffle=True), ROWS),
        (nn.Linear(2, 1), (x for x in X.split(3)), ROWS),
        (nn.Linear(2, 1), [{"input": X, "labels": LABELS}], ROWS),
        (Two(), [(X, MASK, LABELS)], BOTH),
        (Two(), [{"image": X, "mask": MASK, "labels": LABELS}], BOTH),
        (Two(), [{"mask": MASK, "image": X}], sorted(row[2:] + row[:2] for row in BOTH)),
    ],
)
def test_every_form_of_a_batch_gives_its_inputs(module, loader, rows):
    assert called(ModuleSamples.of(module, loader, 64)) == rows


def test_types_survive():
    tokens, half = torch.arange(12).reshape(6, 2), torch.rand(6, 3).bfloat16()
    module = Two()
    args, _ = (data := ModuleSamples.of(module, [(tokens, half)], 64)).call(data.samples.joined())
    assert [arg.dtype for arg in args] == [torch.int64, torch.bfloat16]
    assert sorted(args[1].float().tolist()) == sorted(half.float().tolist())


def test_copies_are_left_out_and_counted():
    data = ModuleSamples.of(nn.Linear(2, 1), [X, X[:3]], 64)
    assert len(data) == 10
    assert "3 of 13 samples were left out" in data.samples.warnings[0]


def test_the_most_that_is_wanted_is_taken():
    assert len(ModuleSamples.of(nn.Linear(2, 1), [X[:4], X[4:]], 6)) == 6


def test_tensors_of_a_batch_that_hold_other_numbers_of_samples_are_refused():
    with pytest.raises(DataError, match="hold 3 and 10 samples"):
        ModuleSamples.of(Two(), [(X, MASK[:3])], 64)


def test_a_key_belongs_to_the_values_of_a_sample():
    keys, turned = keys_of(((X,), {})), keys_of(((X.flip(0),), {}))
    assert len(set(keys)) == 10
    assert keys == turned[::-1]


def test_outputs_are_named_by_their_place():
    y = torch.zeros(1)
    assert list(named_outputs(y)) == ["output"]
    assert list(named_outputs({"a": (y, 3), "b": [y]})) == ["output['a'][0]", "output['b'][0]"]


class Counting(nn.Module):
    """Puts other tensors in the place of its buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("last", None)

    def forward(self, x):
        self.seen = self.seen + len(x)
        self.last = x
        return x


def test_buffers_that_a_forward_replaces_are_put_back():
    module = Counting()
    seen = module.seen
    with state_kept(module):
        module(torch.rand(3, 2))
        module.register_buffer("new", torch.zeros(1))
    assert module.seen is seen
    assert seen.item() == 0
    assert module.last is None
    assert list(dict(module.named_buffers())) == ["seen"]


def test_a_sequential_loader_is_read_at_random_and_the_same_each_time():
    data = TensorDataset(torch.arange(100.0)[:, None].expand(-1, 2), torch.zeros(100))
    drawn = [
        called(ModuleSamples.of(nn.Linear(2, 1), DataLoader(data, 8, shuffle=shuffle), 16, seed))
        for shuffle, seed in ((False, 0), (False, 0), (False, 1), (True, 0), (True, 0))
    ]
    assert max(drawn[0]) > (16, 16)
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[3] == drawn[4]


def test_buffers_and_generators_are_put_back():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    before, generator = module[0].running_mean.clone(), torch.get_rng_state()
    state = np.random.get_state()[1].copy()

    def use():
        with state_kept(module):
            assert not module.training
            module[0].train()(torch.rand(8, 2))
            torch.rand(1)
            np.random.rand()
            assert not torch.equal(module[0].running_mean, before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert module[0].training
    assert module.training
    assert torch.equal(module[0].running_mean, before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert np.array_equal(np.random.get_state()[1], state)
