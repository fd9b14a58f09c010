"""ExportedPrograms: which of their noise a file shows, and that they compute what their module does."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vsfix
from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.graph_passes.noise.marker import EXPORT_METADATA_KEY


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.features = nn.Dropout2d(0.25)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.bn(self.features(self.conv(x)))).mean((2, 3))
        return self.head(self.drop(F.dropout(self.drop(h), 0.125, self.training)))


def traced(module: nn.Module, *, training: bool, decomposed: bool = False) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module.train(training), (torch.randn(4, 1, 8, 8),), dynamic_shapes=shapes)
    if not decomposed:
        return program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of parts of itself
        return program.run_decompositions()


@pytest.mark.parametrize("training", [False, True])
def test_its_dropouts_are_marked_under_the_names_of_their_layers(training):
    module = Network()
    result = vsfix.export(traced(module, training=training))
    assert [(name, str(noise)) for name, noise in result.markers] == [
        ("features", "feature-dropout:0.25"),
        ("drop", "dropout:0.5"),
        ("dropout", "dropout:0.125"),
        ("drop_2", "dropout:0.5"),
    ]
    assert result.batch_norms == ("bn",)
    claims = {each.key: each.value for each in result.model.metadata_props}
    assert claims == ({EXPORT_METADATA_KEY: "4"} if training else {})
    assert (result.status, len(result.warnings)) == (("PASS", 0) if training else ("WARN", 1))
    assert vsfix.verify(result.model, module.eval()).status == "PASS"


def test_after_its_decomposition_the_noise_is_lost_and_the_file_says_so():
    module = Network()
    result = vsfix.export(traced(module, training=False, decomposed=True))
    assert (result.markers, result.batch_norms, result.status) == ((), ("bn",), "WARN")
    assert "was decomposed, which drops them" in result.warnings[0]
    assert vsfix.verify(result.model, module.eval()).status == "PASS"
    with pytest.raises(ModelError, match="decomposed in training mode"):
        vsfix.export(traced(module, training=True, decomposed=True))


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.layer(x.mean(1))
        return h * (1 + 0.1 * torch.randn_like(h)) if self.training else h


def test_noise_by_hand_is_refused_where_it_is_in_the_graph_and_never_denied_where_it_is_not():
    with pytest.raises(ModelError, match=r"draws random numbers by hand \(aten.randn_like.default\); trace the module"):
        vsfix.export(traced(ByHand(), training=True))
    result = vsfix.export(traced(ByHand(), training=False))
    assert result.unmarked == ("noise that layers may make by hand: the ExportedProgram was traced in eval mode",)


def test_values_that_are_not_finite_are_no_random_numbers():
    class Logarithm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.log()

    with pytest.raises(InputError, match="not finite on the example; give a real input"):
        vsfix.export(traced(Logarithm(), training=False), -torch.ones(4, 1, 8, 8))


def test_the_noise_of_an_attention_is_named():
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 if self.training else 0.0)

    result = vsfix.export(traced(Attention(), training=True))
    assert result.unmarked == ("the noise on the weights of an attention (dropout_p=0.1)",)
    assert vsfix.verify(result.model, Attention().eval()).status == "PASS"


def test_what_an_exported_program_has_is_not_given_again():
    program = traced(Network(), training=True)
    with pytest.raises(InputError, match="has its own free axes"):
        vsfix.export(program, dynamic_shapes=({0: "N"},))
    program._example_inputs = None
    with pytest.raises(InputError, match="holds no example inputs; give example_inputs"):
        vsfix.export(program)
    with pytest.raises(InputError, match="takes x; give a tensor for each"):
        vsfix.export(program, (torch.zeros(1), torch.zeros(1)))
    assert len(vsfix.export(program, torch.randn(4, 1, 8, 8)).markers) == 4


class Difference(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, first: torch.Tensor, pair: list[torch.Tensor]) -> torch.Tensor:
        return self.first(first) - 2 * self.second(pair[0]) * pair[1]


@pytest.mark.parametrize("by_name", [False, True])
def test_examples_of_a_program_go_by_their_names_in_any_order(by_name):
    example = {"first": torch.randn(4, 3), "pair": [torch.randn(4, 3), torch.randn(4, 4)]}
    dim = torch.export.Dim("batch")
    shapes = {"first": {0: dim}, "pair": [{0: dim}, {0: dim}]}
    args, kwargs = ((), example) if by_name else (tuple(example.values()), {})
    program = torch.export.export(Difference().eval(), args, kwargs, dynamic_shapes=shapes)
    result = vsfix.export(program, {name: example[name] for name in reversed(example)})
    assert result.inputs == ("first", "pair_0", "pair_1")
    with pytest.raises(InputError, match="takes first, pair_0, pair_1; give example_inputs by these names"):
        vsfix.export(program, {"first": example["first"]})


def test_examples_of_a_program_may_be_arrays_of_any_layout_and_those_of_no_numbers_are_refused():
    program = traced(Network(), training=True)
    assert len(vsfix.export(program, np.ones((4, 1, 8, 8), np.float32)[::-1]).markers) == 4
    with pytest.raises(InputError, match="an array of <U1 is no tensor; give numbers"):
        vsfix.export(program, np.full((4, 1, 8, 8), "a"))


def test_an_example_that_a_program_does_not_take_is_an_error_of_one_line():
    with pytest.raises(InputError, match=r"fails on an input of float64 \(4, 1, 8, 8\)") as caught:
        vsfix.export(traced(Network(), training=False), torch.randn(4, 1, 8, 8).double())
    assert "\n" not in str(caught.value)
