"""What a repair refuses, or breaks off, and that the module is then what it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.trainers.averaging.small_modules import assert_same_state, state
from vsfix.graph_passes.errors import CheckFailedError, DataError, InputError, ModelError
from vsfix.trainers.averaging.module_repair import repair_


class Failing:
    """Raises an error when its countdown has ended."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.error = error
        self.left = after

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("gone"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_error_in_the_loader_changes_nothing(module, rows, error):
    before = state(module)

    def loader():
        torch.rand(3)
        yield rows[:10]
        raise error

    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DataError):
        repair_(module, loader())
    assert_same_state(module, before)


@pytest.mark.parametrize("after", [0, 9, 130])
@pytest.mark.parametrize("error", [RuntimeError("gone"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_error_in_any_forward_changes_nothing(module, rows, error, after):
    failing = Failing(error, after)

    class Breaking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module
            self.bn = nn.BatchNorm1d(1, momentum=None)

        def __deepcopy__(self, memo):  # copies don't fail: what looks at the noise in a copy is not meant
            return copy.deepcopy(self.inner, memo)

        def forward(self, x):
            failing.step()
            return self.inner(x)

    broken = Breaking().train()
    before = state(broken)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError):
        repair_(broken, [rows], refine=None)
    assert failing.left < 0
    assert_same_state(broken, before)


@pytest.mark.long
def test_a_second_repair_is_refused_until_the_weights_are_those_of_the_training(trained, module, rows):
    repair_(module, [rows], refine=False)
    with pytest.raises(InputError, match="repaired already"):
        repair_(module, [rows], refine=False)
    module.load_state_dict(trained.state_dict())
    assert repair_(module, [rows], refine=False).changed


def test_statistics_that_are_not_true_under_the_noise_are_refused(module, rows):
    module[2].running_var *= 4
    before = state(module)
    with pytest.raises(CheckFailedError, match=r"'2' the first .*update_bn"):
        repair_(module, [rows])
    assert_same_state(module, before)


@pytest.mark.parametrize(
    ("loader", "options", "error"),
    [
        ([], {}, DataError),
        ([torch.rand(1, 5)], {}, DataError),
        ([torch.rand(20, 5), torch.rand(20, 4)], {}, DataError),
        ([torch.rand(20, 7)], {}, InputError),
        ([torch.full((40, 5), torch.nan)], {}, DataError),
        (torch.rand(20, 5), {}, InputError),
        ([torch.rand(20, 5)], {"method": "paired"}, InputError),
        ([torch.rand(20, 5)], {"samples": 0}, InputError),
        ([torch.rand(20, 5)], {"samples": "x"}, InputError),
        ([torch.rand(20, 5)], {"samples": torch.tensor(2.5)}, InputError),
        ([torch.rand(20, 5)], {"seed": -1}, InputError),
        ([torch.rand(20, 5)], {"seed": 2**63}, InputError),
        ([torch.rand(20, 5)], {"noise": 5}, InputError),
        ([torch.rand(20, 5)], {"noise": [5]}, InputError),
        ([torch.rand(20, 5)], {"noise": "nowhere=dropout:0.5"}, InputError),
        ([torch.rand(20, 5)], {"noise": {"nowhere": "dropout:0.5"}}, InputError),
        ([torch.rand(20, 5)], {"noise": ["0=tempest:0.5"]}, InputError),
        ([torch.rand(40, 5)], {"output_kinds": {"output": "words"}}, InputError),
        ([{"other": torch.rand(20, 5)}], {}, DataError),
        (["text"], {}, DataError),
    ],
)
def test_bad_input_gets_one_line_and_changes_nothing(module, loader, options, error):
    before = state(module)
    with pytest.raises(error) as caught:
        repair_(module, loader, **options)
    assert "\n" not in str(caught.value)
    assert_same_state(module, before)


@pytest.mark.parametrize(
    "made", [torch.relu, torch.jit.ScriptModule(), torch.compile(nn.Linear(5, 1), backend="eager")]
)
def test_what_can_not_be_looked_into_is_refused(made, rows):
    with pytest.raises(InputError, match="odule"):
        repair_(made, [rows])


def test_a_batch_norm_without_running_statistics_is_refused(rows):
    module = nn.Sequential(nn.Linear(5, 8), nn.Dropout(), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 1))
    with pytest.raises(InputError, match="'2' keeps no running statistics"):
        repair_(module, [rows])


def test_noise_that_is_on_in_eval_mode_is_refused(rows):
    class Always(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 1)

        def forward(self, x):
            return F.dropout(self.linear(x), 0.5)

    with pytest.raises(InputError, match="on in eval mode"):
        repair_(Always(), [rows])


@pytest.mark.long
def test_a_forward_that_takes_another_path_is_refused(trained, rows):
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(trained)

        def forward(self, x):
            return self.inner(x) if len(x) < 90 else x[:, :1]

    with pytest.raises(ModelError, match="another path"):
        repair_(Moody(), [rows], method="match", refine=False)


def test_few_samples_tell_nothing(module, rows):
    before = state(module)
    report = repair_(module, [rows[:12]])
    assert "12 samples can't tell" in report.reason
    assert_same_state(module, before)


def test_what_inference_mode_does_not_let_change_is_refused(module, rows):
    with torch.inference_mode(), pytest.raises(InputError, match=r"inside torch.inference_mode: call repair_ outside"):
        repair_(module, [rows])
    with torch.inference_mode():
        made = copy.deepcopy(module)
    flags = [parameter.requires_grad for parameter in made.parameters()]
    with pytest.raises(InputError, match=r"'0.weight' was made inside torch.inference_mode"):
        repair_(made, [rows])
    assert [parameter.requires_grad for parameter in made.parameters()] == flags
    assert repair_(copy.deepcopy(made), [rows], method="match", refine=False).changed
