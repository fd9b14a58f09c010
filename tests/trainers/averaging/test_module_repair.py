from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.trainers.averaging.small_modules import assert_same_state, averaged, friedman, regressor, state, train
from vsfix.trainers.averaging.module_repair import repair_


def error(module, target, x):
    with torch.no_grad():
        return float(F.mse_loss(module(x), target))


@pytest.mark.long
def test_the_repaired_module_is_nearer_to_the_average_that_torch_itself_draws(module, rows):
    x, y = friedman(1000, 4)
    average = averaged(module, x)
    before, loss = error(module, average, x), error(module, y, x)
    report = repair_(module, [rows])
    assert report.method == "match+refine"
    assert error(module, average, x) < 0.1 * before
    assert error(module, y, x) < loss
    assert report.before.ratio > 1
    assert report.after.ratio < 0.3


@pytest.mark.long
def test_the_match_alone_brings_most_of_it(module, rows):
    x, _ = friedman(1000, 4)
    average = averaged(module, x)
    before = error(module, average, x)
    report = repair_(module, [rows], refine=False)
    assert report.method == "match"
    assert report.changed == ("2", "6")
    assert error(module, average, x) < 0.6 * before


def test_every_layer_follows_its_average(module, rows):
    wanted = averaged(module[:8], rows)
    before = error(module[:8], wanted, rows)
    repair_(module, [rows], refine=False)
    assert error(module[:8], wanted, rows) < 0.6 * before


def test_what_is_stored_is_what_the_batch_norms_see_without_the_noise(module, rows):
    def apart():
        with torch.no_grad():
            return float(torch.log(module[6].running_var / module[:6](rows).var(0, correction=0)).abs().median())

    before = apart()
    repair_(module, [rows], refine=False)
    assert apart() < 0.6 * before


def test_training_flags_and_gradients_stay(module, rows):
    module.train()
    module[0].weight.requires_grad_(False)
    before = state(module)
    repair_(module, [rows], refine=False)
    after = state(module)
    assert after["rest"][:3] == before["rest"][:3]
    assert torch.equal(after["generator"], before["generator"])


def bits(module):
    return [tensor.clone() for tensor in module.state_dict().values()]


@pytest.mark.long
def test_neither_the_order_of_the_samples_nor_their_batches_change_a_bit(trained, rows):
    found = []
    for loader in ([rows], rows[torch.randperm(96, generator=torch.Generator().manual_seed(2))].split(37)):
        module = copy.deepcopy(trained)
        repair_(module, loader, refine=False)
        found.append(bits(module))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.long
def test_another_seed_is_another_noise(trained, rows):
    found = []
    for seed in (0, 1):
        module = copy.deepcopy(trained)
        repair_(module, [rows], refine=False, seed=seed)
        found.append(bits(module))
    assert not all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_noise_of_ratio_0_changes_nothing(rows):
    module = train(regressor(0.0), 20)
    before = state(module)
    report = repair_(module, [rows], method="match")
    assert report.method == "none"
    assert "no noise" in report.reason
    assert_same_state(module, before)


def test_a_healthy_module_is_left_alone_bit_by_bit(rows):
    module = nn.Sequential(nn.Linear(5, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
    train(module)
    before = state(module)
    report = repair_(module, [rows])
    assert report.changed == ()
    assert report.severity.is_healthy
    assert "is below" in report.verdict
    assert_same_state(module, before)


def test_no_more_batches_are_drawn_than_are_needed(module):
    drawn = []

    def loader():
        for number in range(100):
            drawn.append(number)
            yield friedman(10, number)

    assert repair_(module, loader(), samples=25, refine=False).samples == 25
    assert len(drawn) == 3


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 0.7), (torch.bfloat16, 0.7)])
def test_other_types_are_repaired_in_their_own(trained, rows, dtype, bound):
    module = copy.deepcopy(trained).to(dtype)
    report = repair_(module, [rows.to(dtype)], refine=False)
    assert report.after.ratio < bound * report.before.ratio
    assert {tensor.dtype for tensor in module.parameters()} == {dtype}


class Several(nn.Module):
    """A BatchNorm without scale and shift, a linear layer without bias, two outputs, arguments by name."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 24, bias=False)
        self.bn = nn.BatchNorm1d(24, affine=False)
        self.second = nn.Linear(24, 24, bias=False)
        self.heads = nn.ModuleList([nn.Linear(24, 1), nn.Linear(24, 1)])

    def forward(self, x, scale=None):
        h = F.gelu(self.bn(F.dropout(self.first(x), 0.5, self.training)))
        h = F.relu(self.second(F.dropout(h, 0.5, self.training)))
        outputs = [head(h) for head in self.heads]
        return {"y": outputs[0], "more": (outputs[1] * 2, len(x), h.argmax(1))}


class First(nn.Module):
    """The first output of `Several`, to train it."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        out = self.module(x)
        return out["y"] + out["more"][0] / 2


def test_a_module_with_several_outputs_and_missing_parameters(rows):
    module = Several()
    train(First(module))
    loader = [{"x": rows, "labels": torch.zeros(96)}]
    report = repair_(module, loader, method="match", refine=False)
    assert [line.split(":")[0] for line in report.outputs] == ["output['y']", "output['more'][0]"]
    assert report.after.ratio < report.before.ratio
    assert "bn.weight" in report.warnings[-1]
    assert "second.bias" in report.warnings[-1]
    assert {"bn.weight", "bn.bias", "second.bias"} <= module.state_dict().keys()


class Shared(nn.Module):
    """One BatchNorm that is used twice."""

    def __init__(self):
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(5, 24), nn.Linear(5, 24)])
        self.dropout = nn.Dropout(0.5)
        self.bn = nn.BatchNorm1d(24)
        self.head = nn.Linear(24, 1)

    def forward(self, x):
        return self.head(sum(F.relu(self.bn(self.dropout(linear(x)))) for linear in self.linears))


def test_a_batch_norm_that_is_used_twice_has_one_scale(rows):
    module = train(Shared(), 400)
    x, _ = friedman(1000, 4)
    average = averaged(module, x)
    before = error(module, average, x)
    report = repair_(module, [rows], method="match", refine=False)
    assert [layer.name for layer in report.layers] == ["bn", "bn#2"]
    assert report.changed == ("bn",)
    assert error(module, average, x) < before


def test_a_weight_that_two_parts_have_stays_as_it_is(rows):
    module = regressor()
    module[6].weight = module[2].weight
    train(module)
    report = repair_(module, [rows], method="match", refine=False)
    assert sum("another part has the same weight" in warning for warning in report.warnings) == 2


def test_noise_of_no_known_kind_is_switched_on_by_its_flag_and_said(rows):
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(1, 16)
            self.attention = nn.MultiheadAttention(16, 2, dropout=0.4, batch_first=True)
            self.bn = nn.BatchNorm1d(16)
            self.head = nn.Linear(16, 1)

        def forward(self, x):
            h = self.embed(x[..., None])
            return self.head(F.relu(self.bn(self.attention(h, h, h, need_weights=False)[0].mean(1))))

    module = train(Attending())
    report = repair_(module, [rows], method="match", refine=False)
    assert "attention: of no known kind" in report.noise
    assert any("MultiheadAttention 'attention'" in warning for warning in report.warnings)
    assert report.severity.ratio > 0


def test_a_person_can_name_the_noise(module, rows):
    silent = copy.deepcopy(module)
    silent[1], silent[5] = nn.Identity(), nn.Identity()
    assert "no noise" in repair_(silent, [rows]).reason
    told = repair_(silent, [rows], noise={"1": "dropout:0.5", "5": "dropout:0.5"}, refine=False)
    repair_(module, [rows], refine=False)
    assert told.noise == ("1: dropout:0.5", "5: dropout:0.5")
    assert all(torch.equal(one, other) for one, other in zip(bits(silent), bits(module), strict=True))


def test_the_report_prints_and_is_json(module, rows):
    report = repair_(module, [rows], refine=False)
    values = json.loads(report.to_json())
    assert values["changed"] == ["2", "6"]
    assert values["verdict"] == report.verdict
    text = str(report)
    assert text.splitlines()[-1] == f"{report.status}  {report.verdict}"
    assert f"{report.before.ratio:.2f} -> {report.after.ratio:.2f}" in report.verdict
    assert max(map(len, text.splitlines())) < 200


def test_a_repair_without_refinement_that_was_asked_for_is_no_warning(module, rows):
    report = repair_(module, [rows], refine=False)
    assert report.warnings == ()
    assert report.status == "WARN"  # values are still off by more than the bound
    assert not report.after.is_healthy


class Standardised(nn.Module):
    """A regressor that standardises its input, in place or not."""

    def __init__(self, network, in_place):
        super().__init__()
        self.network = network
        self.in_place = in_place

    def forward(self, x):
        return self.network(x.sub_(0.1).div_(1.1) if self.in_place else (x - 0.1) / 1.1)


@pytest.mark.parametrize("refine", [False, True])
def test_a_forward_that_writes_into_its_input_is_repaired_to_the_same_bits(module, rows, refine):
    modules = [Standardised(copy.deepcopy(module), in_place) for in_place in (True, False)]
    before = rows.clone()
    found = [repair_(each, rows.split(64), method="match", refine=refine) for each in modules]
    assert found[0] == found[1]
    assert found[0].changed
    values = [list(each.state_dict().values()) for each in modules]
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))
    assert torch.equal(rows, before)


class Scores(nn.Module):
    """Scores of two classes."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        y = self.network(x)
        return torch.cat([y, -y], 1)


def test_an_open_question_is_not_called_far_within_the_noise(rows):
    module = Scores(train(regressor(0.1), 60))
    report = repair_(module, [rows], output_kinds={"output": "classes"})
    assert report.severity.is_open
    assert report.verdict.endswith("is below 0.85.")
    assert "method='match'" in report.warnings[-1]


def test_numbers_of_numpy_and_a_single_text_are_read(module, rows):
    options = {"samples": np.int64(32), "seed": np.uint8(3), "noise": "2=dropout:0.1"}
    report = repair_(module, [rows], refine=False, **options)
    assert report.samples == 32
    assert "2: dropout:0.1" in report.noise
