from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise import Noise
from vsfix.trainers.noise_layers import Uout
from vsfix.trainers.noise_sites import NoiseSites
from vsfix.trainers.onnx_export import export_onnx
from vsfix.trainers.residual import ResNeXt

NOISE = Noise.parse("uout:0.1")


def order_of_execution(network: nn.Module) -> list[str]:
    """The layers in the order in which they really run, shortcuts apart."""
    names = {nn.BatchNorm2d: "bn", nn.Conv2d: "conv", nn.ReLU: "relu", Uout: "noise", nn.Linear: "linear"}
    seen: list[str] = []
    for name, module in network.named_modules():
        if type(module) in names and "shortcut" not in name:
            module.register_forward_hook(lambda layer, *_: seen.append(names[type(layer)]))
    network.eval()(torch.ones(1, 1, 8, 8))
    return seen


def expected_parameters(n: int, c: int, d: int, classes: int) -> int:
    """Counted from Section 4 and Figure 3c of the paper; a grouped 3x3 is c separate ones of d to d channels."""
    total = 3 * 64 * 9 + 2 * 64
    before = 64
    for stage in range(3):
        wide, out = d * 2**stage, 256 * 2**stage
        for _ in range(n):
            total += before * c * wide + c * (wide * wide * 9) + c * wide * out  # convolutions
            total += 2 * (c * wide + c * wide + out)  # BNs
            total += before * out + 2 * out if before != out else 0  # the shortcut and its BN
            before = out
    return total + before * classes + classes


@pytest.mark.parametrize(
    ("depth", "cardinality", "width", "published"),
    # Table 7 of arXiv 1611.05431 has 34.4M and 68.1M; the digits are those of its networks with 10 classes.
    [(29, 8, 64, 34_426_698), (29, 16, 64, 68_155_210), (29, 4, 8, None), (11, 2, 3, None), (20, 1, 5, None)],
)
def test_parameter_counts_are_the_published_ones(depth, cardinality, width, published):
    with torch.device("meta"):
        network = ResNeXt(depth, cardinality, width, 3, 10)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == expected_parameters((depth - 2) // 9, cardinality, width, 10)
    assert published in (count, None)


def test_the_depth_is_the_number_of_layers_with_weights_on_the_path():
    with torch.device("meta"):
        network = ResNeXt(29, 4, 8, 3, 10)
    weights = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len([name for name in weights if "shortcut" not in name]) == 29


@pytest.mark.parametrize(
    ("site", "third", "tail"),
    [
        ("a", "conv noise bn", "linear"),
        ("b", "noise conv bn", "linear"),
        ("last", "conv bn", "noise linear"),
        ("none", "conv bn", "linear"),
    ],
)
def test_the_noise_stands_at_its_site(site, third, tail):
    order = order_of_execution(ResNeXt(11, 2, 3, 1, 10, noise=NoiseSites(**{site: NOISE} if site != "none" else {})))
    block = ["conv", "bn", "relu", "conv", "bn", "relu", *third.split()]
    assert order == ["conv", "bn", *block * 3, *tail.split()]


def test_a_block_is_a_sum_over_its_groups():
    """Figure 3a of the paper: separate paths that are added up, here before the last BN."""
    torch.manual_seed(0)
    block = ResNeXt(11, 2, 3, 1, 10).eval().double().stage2[0]
    x, body = torch.randn(2, 256, 5, 5, dtype=torch.float64), block.body
    paths = []
    for rows in (slice(0, 6), slice(6, 12)):
        inside = F.relu(body.bn1(F.conv2d(x, body.conv1.weight)))[:, rows]
        raw = torch.zeros(2, 12, 3, 3, dtype=torch.float64)
        raw[:, rows] = F.conv2d(inside, body.conv2.weight[rows], stride=2, padding=1)
        paths.append(F.conv2d(F.relu(body.bn2(raw))[:, rows], body.conv3.weight[:, rows]))
    shortcut = block.shortcut.bn(F.conv2d(x, block.shortcut.conv.weight, stride=2))
    truth = F.relu(body.bn3(paths[0] + paths[1]) + shortcut)
    torch.testing.assert_close(block(x), truth, rtol=1e-12, atol=1e-12)
    assert (block(x) - F.relu(body.bn3(paths[0]) + shortcut)).abs().max() > 0.1, "a lost path must be seen"


def test_only_the_first_block_of_a_stage_projects_its_input():
    with torch.device("meta"):
        network = ResNeXt(20, 2, 3, 1, 10)
    stages = [network.stage1, network.stage2, network.stage3]
    assert [[type(block.shortcut) for block in stage] for stage in stages] == [[nn.Sequential, nn.Identity]] * 3
    assert [stage[0].shortcut.conv.stride for stage in stages] == [(1, 1), (2, 2), (2, 2)]


def test_a_block_leaves_its_input_as_it_was():
    torch.manual_seed(0)
    network = ResNeXt(20, 2, 3, 1, 10)
    for block in network.stage1:
        x = torch.randn(2, block.body.conv1.in_channels, 5, 5)
        before = x.clone()
        block(x)
        assert torch.equal(x, before)


def test_convolutions_start_with_the_spread_of_he():
    torch.manual_seed(0)
    network = ResNeXt(11, 4, 16, 3, 10)
    assert network.stage3[0].body.conv3.weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.02)
    assert not network.classifier.bias.any()


def test_the_width_multiplies_the_channels_and_leaves_the_groups():
    with torch.device("meta"):
        network = ResNeXt(11, 2, 3, 3, 10, width=3)
    grouped = network.stage1[0].body.conv2
    assert (network.conv.out_channels, grouped.out_channels, grouped.groups) == (192, 18, 2)
    assert network.classifier.in_features == 3072


@pytest.mark.parametrize("depth", [0, 2, 10, 28, 30])
def test_a_depth_that_does_not_fit_is_refused(depth):
    with pytest.raises(InputError, match=rf"the depth must be 9n\+2 .*, not {depth}"):
        ResNeXt(depth, 2, 4, 3, 10)


def test_the_export_keeps_each_bn_and_marks_each_noise(tmp_path):
    torch.manual_seed(0)
    network = ResNeXt(11, 2, 2, 1, 3, noise=NoiseSites(a=Noise.parse("dropout:0.5")))
    result = export_onnx(network, torch.randn(2, 1, 8, 8), tmp_path / "resnext.onnx")
    blocks = [f"stage{number}.0" for number in (1, 2, 3)]
    names = [f"{block}.{bn}" for block in blocks for bn in ("body.bn1", "body.bn2", "body.bn3", "shortcut.bn")]
    assert sorted(result.batch_norms) == sorted(["bn", *names])
    assert result.markers == tuple((f"{block}.body.noise", Noise.parse("dropout:0.5")) for block in blocks)
    assert result.unmarked == ()
