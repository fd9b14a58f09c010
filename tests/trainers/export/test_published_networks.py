from __future__ import annotations

import pytest
import torch
from torch import nn

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.layers.noise_layers import Uout
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig, build_network

# The numbers of parameters of the networks for ImageNet are those of torchvision and timm, which were compared output
# by output; those for CIFAR follow from the layers that the papers list, and round to the millions that they print.
SMALL = {
    "preresnet-20": 272_282,
    "preresnet-56": 855_578,
    "preresnet-110": 1_730_522,
    "preresnet-164": 1_703_258,
    "resnext-29-8x64d": 34_426_698,
    "wrn-16-4": 2_748_890,
    "wrn-28-10": 36_479_194,
    "wrn-40-4": 8_949_210,
    "densenet-40-12": 176_122,
    "densenet-100-12": 769_162,
    "densenet-190-40": 25_624_430,
}
LARGE = {
    "resnet-18": 11_689_512,
    "resnet-34": 21_797_672,
    "resnet-50": 25_557_032,
    "resnet-101": 44_549_160,
    "resnet-152": 60_192_808,
    "resnet-200": 64_673_832,
    "resnext-50-32x4d": 25_028_904,
    "resnext-101-32x4d": 44_177_704,
    "resnext-101-64x4d": 83_455_272,
    "seresnet-50": 28_088_024,
    "seresnext-50-32x4d": 27_559_896,
    "senet-154": 115_088_984,
}
PRINTED_MILLIONS = {
    "preresnet-110": 1.7,  # arXiv 1603.05027, table 1
    "preresnet-164": 1.7,
    "resnext-29-8x64d": 34.4,  # arXiv 1611.05431, table 7
    "wrn-16-4": 2.7,  # arXiv 1605.07146, tables 4 and 9
    "wrn-28-10": 36.5,
    "wrn-40-4": 8.9,
    "densenet-100-12": 0.8,  # arXiv 1608.06993, table 2
    "densenet-190-40": 25.6,
}


def built(model: str, size: int, classes: int, noise: NoiseSites | None = None) -> nn.Module:
    with torch.device("meta"):
        return build_network(NetworkConfig(model, 3, (size, size), classes, noise or NoiseSites()))


@pytest.mark.parametrize(("model", "count"), [*SMALL.items(), *LARGE.items()])
def test_the_number_of_parameters_is_the_published_one_to_the_digit(model, count):
    network = built(model, 224, 1000) if model in LARGE else built(model, 32, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(("model", "millions"), PRINTED_MILLIONS.items())
def test_the_numbers_round_to_what_the_papers_print(model, millions):
    assert round(SMALL[model] / 1e6, 1) == millions


@pytest.mark.long
@pytest.mark.parametrize("model", LARGE)
def test_images_become_logits(model):
    network = built(model, 224, 7)
    assert network(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("model", "block"),
    [
        ("resnet-18", "conv1 bn1 relu1 noise_b conv2 noise bn2"),
        ("resnet-50", "conv1 bn1 relu1 conv2 bn2 relu2 noise_b conv3 noise bn3"),
        ("resnext-50-32x4d", "conv1 bn1 relu1 conv2 bn2 relu2 noise_b conv3 noise bn3"),
        ("seresnet-50", "conv1 bn1 relu1 conv2 bn2 relu2 noise_b conv3 noise bn3 attention"),
        ("senet-154", "conv1 bn1 relu1 conv2 bn2 relu2 noise_b conv3 noise bn3 attention"),
    ],
)
def test_every_block_has_its_noise_at_its_sites(model, block):
    half, tenth = Noise.parse("dropout:0.5"), Noise.parse("uout:0.1")
    network = built(model, 64, 10, NoiseSites(a=half, b=tenth, last=half))
    bodies = [part for name, part in network.named_modules() if name.endswith(".body")]
    assert {" ".join(name for name, _ in body.named_children()) for body in bodies} == {block}
    assert all(isinstance(body.noise, nn.Dropout) and isinstance(body.noise_b, Uout) for body in bodies)
    assert isinstance(network.noise, nn.Dropout)


def test_the_first_block_of_a_stage_halves_the_image_in_its_3x3_convolution():
    network = built("senet-154", 64, 10)
    strides = {name: part.stride[0] for name, part in network.named_modules() if isinstance(part, nn.Conv2d)}
    halving = sorted(name for name, stride in strides.items() if stride == 2)
    blocks = [f"stage{stage}.0.{part}" for stage in (2, 3, 4) for part in ("body.conv2", "shortcut.conv")]
    assert halving == sorted([*blocks, "stem.conv1"])
    kernels = [network.get_submodule(f"stage{stage}.0.shortcut.conv").kernel_size[0] for stage in (1, 2, 3, 4)]
    assert kernels == [1, 3, 3, 3]


def test_width_multiplies_all_channels_and_leaves_the_groups():
    with torch.device("meta"):
        wide = build_network(NetworkConfig("resnext-50-32x4d", 3, (64, 64), 10, width=2))
    conv = wide.get_submodule("stage3.1.body.conv2")
    assert (conv.in_channels, conv.groups, wide.classifier.in_features) == (32 * 4 * 4 * 2, 32, 4096)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ("resnet-20", 64, "the depth must be one of 18, 34, 50, 101, 152, 200, not 20"),
        ("resnet", 64, "must be resnet-<depth>"),
        ("resnet-18", 31, "at least 32x32 pixels, not 31x31"),
        ("resnext-50-32x4d", 16, "at least 32x32"),
        ("seresnext-18-32x4d", 64, "with groups the depth must be one of 50, 101, 152"),
        ("seresnext-50", 64, "must be seresnext-<depth>-<cardinality>x<width>d"),
        ("senet-50", 64, "must be senet-154"),
    ],
)
def test_what_is_no_network_is_refused(model, size, message):
    with pytest.raises(InputError, match=message):
        built(model, size, 10)
