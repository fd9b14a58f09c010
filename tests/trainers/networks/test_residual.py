from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.export.onnx_export import export_onnx
from vsfix.trainers.layers.noise_layers import Uout
from vsfix.trainers.layers.noise_sites import NO_NOISE, NoiseSites
from vsfix.trainers.networks.residual import BlockShape, ResidualBlock, ResNet, ResNetForm, ResNeXt

BASIC = BlockShape((6,), 8, stride=2)
BOTTLENECK = BlockShape((6, 6), 8, groups=2, stride=2)
SQUEEZED = BlockShape((6, 12), 32, groups=3, stride=2, reduction=16, shortcut_kernel=3)


def trained(in_channels: int, shape: BlockShape) -> ResidualBlock:
    """A block in eval mode whose BNs are not the identity."""
    torch.manual_seed(0)
    block = ResidualBlock(in_channels, shape, NO_NOISE).double().eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                values.uniform_(0.5, 1.5)
    return block


def normalized(x: torch.Tensor, bn: nn.BatchNorm2d) -> torch.Tensor:
    mean, variance, gamma, beta = (
        values[:, None, None] for values in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    return (x - mean) / (variance + bn.eps).sqrt() * gamma + beta


def written_out(block: ResidualBlock, x: torch.Tensor, shape: BlockShape, *, squeeze: bool) -> torch.Tensor:
    """The formula of the module's head; (padding, stride, groups) of each convolution are the papers'."""
    is_basic = len(shape.inside) == 1
    layers = [(1, 2, 1), (1, 1, 1)] if is_basic else [(0, 1, 1), (1, 2, shape.groups), (0, 1, 1)]
    y = x
    for index, (padding, stride, groups) in enumerate(layers, 1):
        conv, bn = getattr(block.body, f"conv{index}"), getattr(block.body, f"bn{index}")
        y = normalized(F.conv2d(y, conv.weight, None, stride, padding, 1, groups), bn)
        y = y.clamp(min=0) if index < len(layers) else y
    if squeeze:
        inner, outer = block.body.attention.squeeze, block.body.attention.excite
        hidden = (y.mean((2, 3)) @ inner.weight[:, :, 0, 0].T + inner.bias).clamp(min=0)
        factors = 1 / (1 + torch.exp(-(hidden @ outer.weight[:, :, 0, 0].T + outer.bias)))
        y = y * factors[:, :, None, None]
    kernel = block.shortcut.conv.weight
    shortcut = normalized(F.conv2d(x, kernel, None, 2, kernel.shape[-1] // 2), block.shortcut.bn)
    return (y + shortcut).clamp(min=0)


@pytest.mark.parametrize("shape", [BASIC, BOTTLENECK, SQUEEZED], ids=["basic", "bottleneck", "squeezed"])
def test_a_block_computes_its_formula(shape):
    block, x = trained(4, shape), torch.randn(3, 4, 7, 9, dtype=torch.float64)
    out = block(x.clone())
    assert out.shape == (3, shape.outside, 4, 5)
    truth = written_out(block, x, shape, squeeze=shape.reduction > 0)
    torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)


def test_a_lost_squeeze_is_seen():
    block, x = trained(4, SQUEEZED), torch.randn(3, 4, 7, 9, dtype=torch.float64)
    assert (block(x) - written_out(block, x, SQUEEZED, squeeze=False)).abs().max() > 0.1


def test_squeeze_and_excitation_has_a_sixteenth_of_the_channels_inside():
    attention = trained(4, SQUEEZED).body.attention
    assert (attention.squeeze.out_channels, attention.excite.out_channels) == (2, 32)


@pytest.mark.parametrize("shape", [BlockShape((4,), 4), BlockShape((2, 2), 4, reduction=2)], ids=["basic", "squeezed"])
def test_a_block_that_keeps_the_shape_adds_its_input_and_leaves_it_as_it_was(shape):
    block, x = trained(4, shape), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    before = x.clone()
    torch.testing.assert_close(block(x), (block.body(x) + x).clamp(min=0), rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)
    assert isinstance(block.shortcut, nn.Identity)


TENTH = Noise.parse("uout:0.1")
EVERYWHERE = NoiseSites(a=TENTH, b=TENTH, last=TENTH)
FORMS = {
    "resnet-18": ResNetForm(18),
    "resnet-50": ResNetForm(50),
    "seresnext-50-32x1d": ResNetForm(50, 32, 1, attention=True),
    "senet-154": ResNetForm(152, 64, 4, attention=True, deep=True),
}


def built(model: str, noise: NoiseSites = NO_NOISE) -> ResNet:
    torch.manual_seed(0)
    return ResNet(FORMS[model], 3, 5, noise=noise)


def order_of_execution(model: str, noise: NoiseSites) -> list[str]:
    """The layers in the order in which they really run, shortcuts and squeeze-and-excitation apart."""
    kinds = {nn.BatchNorm2d: "bn", nn.Conv2d: "conv", nn.ReLU: "relu", Uout: "noise", nn.Linear: "linear"}
    kinds[nn.MaxPool2d] = "pool"
    with torch.device("meta"):
        network = ResNet(FORMS[model], 3, 5, noise=noise).eval()
    seen: list[str] = []
    for name, module in network.named_modules():
        if type(module) in kinds and "shortcut" not in name and "attention" not in name:
            module.register_forward_hook(lambda layer, *_: seen.append(kinds[type(layer)]))
    network(torch.empty(1, 3, 32, 32, device="meta"))
    return seen


@pytest.mark.long
@pytest.mark.parametrize(
    ("noise", "final", "tail"),
    [
        (NO_NOISE, "conv bn", "linear"),
        (NoiseSites(a=TENTH), "conv noise bn", "linear"),
        (NoiseSites(b=TENTH), "noise conv bn", "linear"),
        (NoiseSites(last=TENTH), "conv bn", "noise linear"),
        (EVERYWHERE, "noise conv noise bn", "noise linear"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("model", "stem", "before", "blocks"),
    [
        ("resnet-18", 1, 1, 8),
        ("resnet-50", 1, 2, 16),
        ("seresnext-50-32x1d", 1, 2, 16),
        ("senet-154", 3, 2, 50),
    ],
)
def test_the_noise_runs_at_its_site(model, stem, before, blocks, noise, final, tail):
    block = ["conv", "bn", "relu"] * before + final.split()
    whole = ["conv", "bn", "relu"] * stem + ["pool"] + block * blocks + tail.split()
    assert order_of_execution(model, noise) == whole


@pytest.mark.parametrize(
    ("model", "largest"),
    # Windows of three over 0 to 7 with stride 2: from -1 on, as in ResNet; from 0 on, the last one cut off, as in SENet.
    [("resnet-18", [1, 3, 5, 7]), ("senet-154", [2, 4, 6, 7])],
)
def test_the_stem_brings_the_image_to_a_quarter(model, largest):
    with torch.device("meta"):
        stem = ResNet(FORMS[model], 3, 5).stem
    assert stem(torch.empty(1, 3, 64, 96, device="meta")).shape[2:] == (16, 24)
    assert stem.pool(torch.arange(8.0).expand(1, 1, 8, 8))[0, 0, 0].tolist() == largest


@pytest.mark.parametrize("model", ["resnet-18", "seresnext-50-32x1d"])
def test_noise_changes_training_alone_and_neither_names_nor_first_weights(model):
    plain, noisy = built(model), built(model, EVERYWHERE)
    states = plain.state_dict(), noisy.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(plain.eval()(images), noisy.eval()(images))
    assert not torch.equal(noisy.train()(images), noisy(images))


@pytest.mark.parametrize("model", ["resnet-18", "seresnext-50-32x1d"])
def test_a_step_moves_every_weight(model):
    network, images = built(model), torch.randn(4, 3, 40, 33)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    F.cross_entropy(network(images), torch.arange(4)).backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert all(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_convolutions_start_with_the_deviation_of_he_and_every_bn_as_the_identity():
    network = built("resnet-18")
    assert network.stage4[0].body.conv2.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert all((bn.weight == 1).all() for bn in network.modules() if isinstance(bn, nn.BatchNorm2d))


@pytest.mark.long
def test_the_export_keeps_each_bn_and_marks_each_noise(tmp_path):
    noise = NoiseSites(a=Noise.parse("dropout:0.5"), b=TENTH, last=Noise.parse("dropout:0.2"))
    network = built("resnet-18", noise)
    result = export_onnx(network, torch.randn(2, 3, 32, 32), tmp_path / "resnet.onnx")
    blocks = [f"stage{stage}.{block}.body" for stage in (1, 2, 3, 4) for block in (0, 1)]
    inside = [(f"{block}.{name}", at) for block in blocks for name, at in (("noise", noise.a), ("noise_b", noise.b))]
    assert sorted(result.markers) == sorted([*inside, ("noise", noise.last)])
    assert len(result.batch_norms) == 1 + 2 * 8 + 3
    assert result.unmarked == ()


NOISE = Noise.parse("uout:0.1")


def order_of_execution_in_resnexts(network: nn.Module) -> list[str]:
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
    order = order_of_execution_in_resnexts(
        ResNeXt(11, 2, 3, 1, 10, noise=NoiseSites(**{site: NOISE} if site != "none" else {}))
    )
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


def test_convolutions_start_with_the_deviation_of_he():
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


@pytest.mark.long
def test_the_export_keeps_each_bn_and_marks_each_noise_in_resnexts(tmp_path):
    torch.manual_seed(0)
    network = ResNeXt(11, 2, 2, 1, 3, noise=NoiseSites(a=Noise.parse("dropout:0.5")))
    result = export_onnx(network, torch.randn(2, 1, 8, 8), tmp_path / "resnext.onnx")
    blocks = [f"stage{number}.0" for number in (1, 2, 3)]
    names = [f"{block}.{bn}" for block in blocks for bn in ("body.bn1", "body.bn2", "body.bn3", "shortcut.bn")]
    assert sorted(result.batch_norms) == sorted(["bn", *names])
    assert result.markers == tuple((f"{block}.body.noise", Noise.parse("dropout:0.5")) for block in blocks)
    assert result.unmarked == ()
