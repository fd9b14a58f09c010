from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.export.onnx_export import export_onnx
from vsfix.trainers.layers.noise_layers import Uout
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.densenet import DenseNet

NOISE = Noise.parse("uout:0.1")


def order_of_execution(network: nn.Module) -> list[str]:
    """The layers in the order in which they really run."""
    names = {nn.BatchNorm2d: "bn", nn.Conv2d: "conv", nn.AvgPool2d: "pool", Uout: "noise", nn.Linear: "linear"}
    seen: list[str] = []
    for module in network.modules():
        if type(module) in names:
            module.register_forward_hook(lambda layer, *_: seen.append(names[type(layer)]))
    network.eval()(torch.ones(1, 1, 8, 8))
    return seen


def expected_parameters(n: int, k: int, classes: int) -> int:
    """Counted layer by layer from Section 3 of the paper, with its names: growth rate k, bottleneck 4k, theta 0.5."""
    channels = 2 * k
    total = 3 * channels * 9
    for block in range(3):
        for _ in range(n):
            total += 2 * channels + channels * 4 * k + 2 * 4 * k + 4 * k * k * 9
            channels += k
        if block < 2:
            total += 2 * channels + channels * (channels // 2)
            channels //= 2
    return total + 2 * channels + channels * classes + classes


@pytest.mark.parametrize(
    ("depth", "growth", "published"),
    [(100, 12, 769_162), (190, 40, 25_624_430), (40, 12, None), (22, 8, None), (10, 3, None)],
)
def test_parameter_counts_are_the_published_ones(depth, growth, published):
    with torch.device("meta"):
        network = DenseNet(depth, growth, 3, 10)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == expected_parameters((depth - 4) // 6, growth, 10)
    assert published in (count, None)


def test_the_depth_is_the_number_of_layers_with_weights():
    with torch.device("meta"):
        network = DenseNet(40, 12, 3, 10)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == 40


@pytest.mark.parametrize(
    ("site", "layer", "tail"),
    [
        ("a", "bn conv noise bn conv", "bn linear"),
        ("b", "bn conv bn noise conv", "bn linear"),
        ("last", "bn conv bn conv", "bn noise linear"),
        ("none", "bn conv bn conv", "bn linear"),
    ],
)
def test_the_noise_stands_at_its_site(site, layer, tail):
    order = order_of_execution(DenseNet(16, 2, 1, 10, noise=NoiseSites(**{site: NOISE} if site != "none" else {})))
    block, transition = layer.split() * 2, ["bn", "conv", "pool"]
    assert order == ["conv", *block, *transition, *block, *transition, *block, *tail.split()]


def test_a_layer_appends_its_new_channels_to_those_it_was_given():
    torch.manual_seed(0)
    layer = DenseNet(10, 3, 1, 10).eval().double().features.block1[0]
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    inner = F.conv2d(F.relu(layer.body.bn1(x)), layer.body.conv1.weight)
    new = F.conv2d(F.relu(layer.body.bn2(inner)), layer.body.conv2.weight, padding=1)
    torch.testing.assert_close(layer(x), torch.cat([x, new], 1), rtol=1e-12, atol=1e-12)
    assert (layer(x) - torch.cat([new, x], 1)).abs().max() > 0.1, "the other order must be seen"


def test_a_layer_leaves_its_input_as_it_was():
    torch.manual_seed(0)
    layer = DenseNet(10, 3, 1, 10).features.block1[0]
    x = torch.randn(2, 6, 5, 5)
    before = x.clone()
    layer(x)
    assert torch.equal(x, before)


def test_a_transition_halves_the_channels_and_averages_each_square_of_four():
    torch.manual_seed(0)
    transition = DenseNet(10, 4, 1, 10).eval().double().features.transition1
    x = torch.randn(2, 12, 4, 6, dtype=torch.float64)
    mixed = torch.einsum("oi,nihw->nohw", transition.conv.weight[..., 0, 0], F.relu(transition.bn(x)))
    truth = mixed.reshape(2, 6, 2, 2, 3, 2).mean((3, 5))
    torch.testing.assert_close(transition(x), truth, rtol=1e-12, atol=1e-12)


def test_convolutions_start_with_the_deviation_of_he():
    torch.manual_seed(0)
    network = DenseNet(22, 32, 3, 10)
    assert network.features.block3[0].body.conv2.weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.02)
    assert not network.classifier.bias.any()


def test_the_width_multiplies_the_growth_rate():
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in network.parameters())
            for network in (DenseNet(22, 4, 3, 10, width=3), DenseNet(22, 12, 3, 10))
        ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("depth", [0, 4, 15, 20, 101])
def test_a_depth_that_does_not_fit_is_refused(depth):
    with pytest.raises(InputError, match=rf"the depth must be 6n\+4 .*, not {depth}"):
        DenseNet(depth, 12, 3, 10)


def test_the_export_keeps_each_bn_and_marks_each_noise(tmp_path):
    torch.manual_seed(0)
    network = DenseNet(10, 2, 1, 3, noise=NoiseSites(b=Noise.parse("dropout:0.5")))
    result = export_onnx(network, torch.randn(2, 1, 8, 8), tmp_path / "dense.onnx")
    bodies = [f"features.block{number}.0.body" for number in (1, 2, 3)]
    layers = [(f"{body}.bn1", f"{body}.bn2") for body in bodies]
    transitions = [(f"features.transition{number}.bn",) for number in (1, 2)]
    assert result.batch_norms == (*layers[0], *transitions[0], *layers[1], *transitions[1], *layers[2], "bn")
    assert result.markers == tuple((f"{body}.noise", Noise.parse("dropout:0.5")) for body in bodies)
    assert result.unmarked == ()
