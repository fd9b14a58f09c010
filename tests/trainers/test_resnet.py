from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.noise import Noise
from vsfix.trainers.noise_layers import Uout
from vsfix.trainers.noise_sites import NO_NOISE, NoiseSites
from vsfix.trainers.onnx_export import export_onnx
from vsfix.trainers.residual import ResNet, ResNetForm

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


def test_convolutions_start_with_the_spread_of_he_and_every_bn_as_the_identity():
    network = built("resnet-18")
    assert network.stage4[0].body.conv2.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert all((bn.weight == 1).all() for bn in network.modules() if isinstance(bn, nn.BatchNorm2d))


def test_the_export_keeps_each_bn_and_marks_each_noise(tmp_path):
    noise = NoiseSites(a=Noise.parse("dropout:0.5"), b=TENTH, last=Noise.parse("dropout:0.2"))
    network = built("resnet-18", noise)
    result = export_onnx(network, torch.randn(2, 3, 32, 32), tmp_path / "resnet.onnx")
    blocks = [f"stage{stage}.{block}.body" for stage in (1, 2, 3, 4) for block in (0, 1)]
    inside = [(f"{block}.{name}", at) for block in blocks for name, at in (("noise", noise.a), ("noise_b", noise.b))]
    assert sorted(result.markers) == sorted([*inside, ("noise", noise.last)])
    assert len(result.batch_norms) == 1 + 2 * 8 + 3
    assert result.unmarked == ()
