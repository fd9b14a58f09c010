from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.trainers.export.noise_reach import reaches_deployment
from vsfix.trainers.export.noise_tracing import NoiseSource
from vsfix.trainers.export.training_noise import TrainingNoise, observe_training_noise

ROWS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Auxiliary(nn.Module):
    """A network with a second head in training mode, as Inception, PSPNet and DeepLab have it.

    Args:
        order: which of the two predictions comes first.
        joined: "nothing", or how the second head gets to the first: "input" of a layer, "output".
        inplace: the Dropout of the second head writes over its input.
    """

    def __init__(self, order: str = "main first", joined: str = "nothing", inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        self.aux = nn.Sequential(nn.Dropout(0.5, inplace=inplace), nn.Linear(4, 5))
        self.order, self.joined = order, joined

    def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        x = self.bn(self.conv(x)).mean((2, 3))
        if not self.training:
            return self.fc(x)
        aux = self.aux(x)
        main = self.fc(x + (aux.mean() if self.joined == "input" else 0.0))
        main = main + (aux if self.joined == "output" else 0.0)
        return {"out": main, "aux": aux} if self.order == "main first" else {"aux": aux, "out": main}


def test_the_dropout_of_an_auxiliary_head_is_of_no_concern():
    assert observe_training_noise(Auxiliary(), ROWS) == TrainingNoise({}, ())
    assert not reaches_deployment(Auxiliary(), ROWS, [NoiseSource("aux.0")])
    assert not reaches_deployment(Auxiliary(), ROWS, [NoiseSource("aux.0", 0)])


@pytest.mark.parametrize("joined", ["input", "output"])
def test_an_auxiliary_head_that_gets_into_the_prediction_is_reported(joined):
    module = Auxiliary(joined=joined)
    assert reaches_deployment(module, ROWS, [NoiseSource("aux.0")])
    (description,) = observe_training_noise(module, ROWS).unknown
    assert "aux.0" in description
    assert "training mode only" in description


def test_noise_that_writes_over_what_the_prediction_reads_is_reported():
    assert reaches_deployment(Auxiliary(inplace=True), ROWS, [NoiseSource("aux.0")])
    assert len(observe_training_noise(Auxiliary(inplace=True), ROWS).unknown) == 1


def test_the_first_tensor_counts_as_the_prediction():
    assert reaches_deployment(Auxiliary(order="auxiliary first"), ROWS, [NoiseSource("aux.0")])


class Normalised(nn.Module):
    """A branch of training mode that is normalised before it joins the prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x * 2
        return x * 2 + F.instance_norm(self.drop(x)).round(decimals=2)


def test_a_normalisation_does_not_hide_the_change():
    assert reaches_deployment(Normalised(), ROWS, [NoiseSource("drop")])


class Loss(nn.Module):
    """A module that returns no tensor in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor | float:
        return self.drop(x).mean().item() if self.training else x * 2


def test_without_a_prediction_to_compare_nothing_is_shown_to_be_idle():
    assert reaches_deployment(Loss(), ROWS, [NoiseSource("drop")])


class Calls(nn.Module):
    """Two calls of one noise function; the second one's result is used."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        F.dropout(x, 0.5, self.training)
        return self.bn(F.dropout(x, 0.5, self.training))


def test_calls_of_one_part_are_told_apart():
    assert not reaches_deployment(Calls(), ROWS, [NoiseSource("", 0)])
    assert reaches_deployment(Calls(), ROWS, [NoiseSource("", 1)])
    assert reaches_deployment(Calls(), ROWS, [NoiseSource("", 0), NoiseSource("", 1)])


def test_a_place_that_the_forward_never_comes_to_is_not_shown_to_be_idle():
    assert reaches_deployment(Calls(), ROWS, [NoiseSource("", 2)])


def test_a_module_that_fails_is_not_shown_to_be_idle():
    assert reaches_deployment(Auxiliary(), ROWS[:, :2], [NoiseSource("aux.0")])


def test_the_module_and_the_generators_stay_as_they_are():
    module = Auxiliary().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    reaches_deployment(module, ROWS, [NoiseSource("aux.0")])
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training


class Hidden(nn.Module):
    """A network whose BatchNorm sees noise in training mode by a path that is easily overlooked.

    Args:
        path: of the noise.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.noise = Source(path, self)
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = self.conv(x)
        off = self.bn(x)
        if not self.training:
            return off
        found = self.noise(x)
        if self.path in ("mask", "number"):
            x = x * found
        elif self.path == "complex":
            x = torch.fft.ifft2(found).real
        elif self.path == "attribute":
            x = x * self.noise.kept
        elif self.path == "choice":
            x = x * (1.0 + found.argmax(1))[:, None, None, None]
        if self.path == "by name":
            return off, self.bn(input=found)
        return off, (found if self.path == "shared part" else self.bn(x))


class Source(nn.Module):
    """Makes the noise, in training mode only."""

    def __init__(self, path: str, network: Hidden) -> None:
        super().__init__()
        self.path = path
        self.shared = network.bn

    def forward(self, x: torch.Tensor) -> object:
        drawn = torch.rand_like(x) > 0.5
        if self.path == "in place":
            x.mul_(drawn * 2.0)
        self.kept = drawn * 2.0 if self.path == "attribute" else None
        made = {
            "mask": lambda: drawn,
            "number": lambda: float(drawn.float().mean()),
            "complex": lambda: torch.fft.fft2(x) * drawn,
            "choice": lambda: (x * drawn).mean((2, 3)),
            "by name": lambda: x * drawn,
            "shared part": lambda: self.shared(x * drawn),
        }
        return made[self.path]() if self.path in made else None


@pytest.mark.parametrize(
    "path", ["mask", "number", "complex", "attribute", "choice", "by name", "shared part", "in place"]
)
def test_noise_that_gets_to_a_deployed_part_by_an_indirect_path_is_reported(path):
    torch.manual_seed(0)
    (description,) = observe_training_noise(Hidden(path), ROWS).unknown
    assert "Source 'noise'" in description


def test_a_place_where_no_global_generator_moves_is_not_shown_to_be_idle():
    class Drawn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(np.random.default_rng(0).random())

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.drawn = nn.BatchNorm2d(3), Drawn()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | torch.Tensor:
            return (self.bn(x), self.drawn(x)) if self.training else self.bn(x)

    assert reaches_deployment(Network(), ROWS, [NoiseSource("drawn")])
