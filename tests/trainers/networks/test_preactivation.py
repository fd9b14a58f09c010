from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.export.onnx_export import export_onnx
from vsfix.trainers.layers.noise_layers import Uout
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.preactivation import PreResNet, WideResNet, choose_block

NOISE = Noise.parse("uout:0.1")


def order_of_execution(network: nn.Module, image: torch.Tensor) -> list[str]:
    """The layers in the order in which they really run, blocks apart, e.g. `bn conv noise bn conv`."""
    names = {nn.BatchNorm2d: "bn", nn.Conv2d: "conv", Uout: "noise", nn.Linear: "linear"}
    seen: list[str] = []
    handles = [
        module.register_forward_hook(lambda layer, *_: seen.append(names[type(layer)]))
        for name, module in network.named_modules()
        if type(module) in names and "shortcut" not in name
    ]
    network.eval()(image)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("depth", "block", "millions"),
    # Table 1 of arXiv 1603.05027 has 1.7M for 110 and 164; 0.27M for 20 is that of arXiv 1512.03385.
    [(20, None, 0.27), (56, None, 0.85), (110, None, 1.7), (164, None, 1.7), (164, "bottleneck", 1.7)],
)
def test_parameter_counts_are_the_published_ones(depth, block, millions):
    with torch.device("meta"):
        network = PreResNet(depth, 3, 10, block=block)
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.025)


@pytest.mark.parametrize(("depth", "kind", "layers"), [(20, "basic", 20), (29, "bottleneck", 29), (164, None, 164)])
def test_the_depth_is_the_number_of_layers_with_weights_on_the_path(depth, kind, layers):
    with torch.device("meta"):
        network = PreResNet(depth, 3, 10, block=kind)
    weights = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in weights if "shortcut" not in name]) == layers


def test_site_a_is_directly_in_front_of_the_last_bn_of_each_block():
    order = order_of_execution(PreResNet(8, 1, 10, noise=NoiseSites(a=NOISE)), torch.ones(1, 1, 8, 8))
    assert order == ["conv", *["bn", "conv", "noise", "bn", "conv"] * 3, "bn", "linear"]


def test_site_b_is_upstream_of_the_last_convolution_and_downstream_of_its_bn():
    order = order_of_execution(PreResNet(8, 1, 10, noise=NoiseSites(b=NOISE)), torch.ones(1, 1, 8, 8))
    assert order == ["conv", *["bn", "conv", "bn", "noise", "conv"] * 3, "bn", "linear"]


@pytest.mark.parametrize(("site", "tail"), [("a", "noise bn conv"), ("b", "bn noise conv")])
def test_in_a_bottleneck_the_noise_stands_at_the_third_bn(site, tail):
    order = order_of_execution(PreResNet(11, 1, 10, noise=NoiseSites(**{site: NOISE})), torch.ones(1, 1, 8, 8))
    assert order == ["conv", *["bn", "conv", "bn", "conv", *tail.split()] * 3, "bn", "linear"]


def test_site_last_is_once_in_front_of_the_classifier():
    order = order_of_execution(PreResNet(8, 1, 10, noise=NoiseSites(last=NOISE)), torch.ones(1, 1, 8, 8))
    assert order == ["conv", *["bn", "conv", "bn", "conv"] * 3, "bn", "noise", "linear"]


def test_site_b_lies_downstream_of_the_relu():
    network = PreResNet(8, 1, 10, noise=NoiseSites(b=NOISE)).eval()
    lowest = []
    network.stage1[0].body.noise.register_forward_hook(
        lambda _, inputs, __: lowest.append(inputs[0].detach().min().item())
    )
    network(torch.randn(4, 1, 8, 8))
    assert lowest == [0.0]


def test_without_a_site_there_is_no_noise():
    order = order_of_execution(PreResNet(8, 1, 10, noise=NoiseSites()), torch.ones(1, 1, 8, 8))
    assert "noise" not in order


def test_a_block_adds_its_body_to_the_shortcut():
    torch.manual_seed(0)
    for block in PreResNet(8, 1, 10).eval().double().stage2:
        x = torch.randn(2, 16, 9, 9, dtype=torch.float64)
        pre = torch.relu(block.bn1(x))
        middle = torch.relu(block.body.bn2(nn.functional.conv2d(pre, block.body.conv1.weight, stride=2, padding=1)))
        body = nn.functional.conv2d(middle, block.body.conv2.weight, padding=1)
        shortcut = nn.functional.conv2d(pre, block.shortcut.weight, stride=2)
        torch.testing.assert_close(block(x), body + shortcut, rtol=1e-12, atol=1e-12)
        planted = body + nn.functional.conv2d(x, block.shortcut.weight, stride=2)
        assert (block(x) - planted).abs().max() > 0.1, "a shortcut of the raw input must be seen"


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (33, 33), (9, 14)])
def test_any_image_size_trains_a_step(size):
    torch.manual_seed(0)
    network = PreResNet(8, 2, 5, noise=NoiseSites(last=Noise.parse("feature-dropout:0.5")))
    images, labels = torch.randn(4, 2, *size), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    logits = network(images)
    assert logits.shape == (4, 5)
    before = nn.functional.cross_entropy(network.eval()(images), labels)
    nn.functional.cross_entropy(network.train()(images), labels).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    optimizer.step()
    assert torch.isfinite(before)
    assert torch.isfinite(network(images)).all()


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    network = PreResNet(8, 1, 4)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 4
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_convolutions_start_with_the_deviation_of_he():
    torch.manual_seed(0)
    weight = PreResNet(14, 3, 10).stage3[1].body.conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_width_multiplies_the_channels():
    with torch.device("meta"):
        assert PreResNet(8, 3, 10, width=4).classifier.in_features == 256


def reference_block(depth: int) -> str | None:
    """The rule of the paper's networks, counted out instead of computed."""
    basic = depth in range(8, 2000, 6)
    bottleneck = depth in range(11, 2000, 9)
    if not basic and not bottleneck:
        return None
    return "bottleneck" if bottleneck and (depth >= 164 or not basic) else "basic"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1500))
def test_the_depth_decides_the_block(depth):
    expected = reference_block(depth)
    if expected is None:
        with pytest.raises(InputError, match=r"6n\+2"):
            choose_block(depth)
    else:
        assert choose_block(depth) == expected


def test_a_block_that_is_asked_for_overrides_the_depth():
    assert choose_block(164, "basic") == "basic"
    assert choose_block(20, "bottleneck") == "bottleneck"
    with pytest.raises(InputError, match=r"9n\+2"):
        choose_block(8, "bottleneck")


def order_of_execution_in_wide_resnets(network: nn.Module) -> list[str]:
    """The layers in the order in which they really run, shortcuts apart."""
    names = {nn.BatchNorm2d: "bn", nn.Conv2d: "conv", Uout: "noise", nn.Linear: "linear"}
    seen: list[str] = []
    for name, module in network.named_modules():
        if type(module) in names and "shortcut" not in name:
            module.register_forward_hook(lambda layer, *_: seen.append(names[type(layer)]))
    network.eval()(torch.ones(1, 1, 8, 8))
    return seen


def expected_parameters(n: int, k: int, classes: int) -> int:
    """Counted from Table 1 of the paper: convolutions without bias, two numbers per channel for each BN."""
    widths = [16, 16 * k, 32 * k, 64 * k]
    total = 3 * 16 * 9
    for before, after in pairwise(widths):
        total += before * after * 9 + (2 * n - 1) * after * after * 9  # 3x3
        total += before * after if before != after else 0  # the shortcut
        total += 2 * before + 2 * after * (2 * n - 1)  # each BN stands upstream of its convolution
    return total + 2 * widths[-1] + widths[-1] * classes + classes


@pytest.mark.parametrize(
    ("depth", "widen", "published"),
    [(28, 10, 36_479_194), (16, 4, 2_748_890), (40, 4, 8_949_210), (16, 1, None), (10, 3, None)],
)
def test_parameter_counts_are_the_published_ones_in_wide_resnets(depth, widen, published):
    with torch.device("meta"):
        network = WideResNet(depth, widen, 3, 10)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == expected_parameters((depth - 4) // 6, widen, 10)
    assert published in (count, None)


def test_the_depth_is_the_number_of_convolutions():
    with torch.device("meta"):
        network = WideResNet(28, 2, 3, 10)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 28


@pytest.mark.parametrize(
    ("site", "block", "tail"),
    [
        ("a", "bn conv noise bn conv", "bn linear"),
        ("b", "bn conv bn noise conv", "bn linear"),
        ("last", "bn conv bn conv", "bn noise linear"),
        ("none", "bn conv bn conv", "bn linear"),
    ],
)
def test_the_noise_stands_at_its_site(site, block, tail):
    order = order_of_execution_in_wide_resnets(
        WideResNet(16, 2, 1, 10, noise=NoiseSites(**{site: NOISE} if site != "none" else {}))
    )
    assert order == ["conv", *block.split() * 6, *tail.split()]


def test_the_first_stage_widens_and_needs_a_shortcut_and_the_others_halve():
    network = WideResNet(16, 2, 1, 10)
    shortcuts = [(i, block.shortcut) for i, block in enumerate(stages_of(network)) if block.shortcut is not None]
    found = [(i, conv.in_channels, conv.out_channels, conv.stride, conv.kernel_size) for i, conv in shortcuts]
    assert found == [
        (0, 16, 32, (1, 1), (1, 1)),
        (2, 32, 64, (2, 2), (1, 1)),
        (4, 64, 128, (2, 2), (1, 1)),
    ]


def stages_of(network: WideResNet) -> list[nn.Module]:
    """All blocks in their order."""
    return [*network.stage1, *network.stage2, *network.stage3]


def test_the_network_is_the_formula_of_its_head():
    torch.manual_seed(0)
    network = WideResNet(10, 2, 1, 3).eval().double()
    image = torch.randn(2, 1, 9, 9, dtype=torch.float64)
    x = F.conv2d(image, network.conv.weight, padding=1)
    shortcut_of_raw_input = x
    for stride, block in zip((1, 2, 2), stages_of(network), strict=True):
        pre = F.relu(block.bn1(x))
        inner = F.relu(block.body.bn2(F.conv2d(pre, block.body.conv1.weight, stride=stride, padding=1)))
        body = F.conv2d(inner, block.body.conv2.weight, padding=1)
        shortcut_of_raw_input = body + F.conv2d(x, block.shortcut.weight, stride=stride)
        x = body + F.conv2d(pre, block.shortcut.weight, stride=stride)
    truth, planted = (
        F.relu(network.bn(end)).mean((2, 3)) @ network.classifier.weight.T for end in (x, shortcut_of_raw_input)
    )
    torch.testing.assert_close(network(image), truth, rtol=1e-12, atol=1e-12)
    assert (network(image) - planted).abs().max() > 1e-3, "a shortcut of the raw input must be seen"


def test_convolutions_start_with_the_deviation_of_he_in_wide_resnets():
    torch.manual_seed(0)
    network = WideResNet(10, 4, 3, 10)
    assert network.stage3[0].body.conv1.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert not network.classifier.bias.any()


def test_the_width_multiplies_the_first_convolution_too():
    with torch.device("meta"):
        network = WideResNet(10, 2, 3, 10, width=3)
    assert (network.conv.out_channels, network.classifier.in_features) == (48, 384)


@pytest.mark.parametrize("depth", [0, 4, 15, 20, 29])
def test_a_depth_that_does_not_fit_is_refused(depth):
    with pytest.raises(InputError, match=rf"the depth must be 6n\+4 .*, not {depth}"):
        WideResNet(depth, 2, 3, 10)


def test_the_export_keeps_each_bn_and_marks_each_noise(tmp_path):
    torch.manual_seed(0)
    network = WideResNet(10, 1, 1, 3, noise=NoiseSites(b=Noise.parse("dropout:0.5")))
    result = export_onnx(network, torch.randn(2, 1, 8, 8), tmp_path / "wrn.onnx")
    stages = [f"stage{number}.0" for number in (1, 2, 3)]
    assert result.batch_norms == (*(f"{stage}.{bn}" for stage in stages for bn in ("bn1", "body.bn2")), "bn")
    assert result.markers == tuple((f"{stage}.body.noise", Noise.parse("dropout:0.5")) for stage in stages)
    assert result.unmarked == ()
