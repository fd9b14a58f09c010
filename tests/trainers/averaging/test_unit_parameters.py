from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vsfix.graph_passes.estimators.units import FoundParameters, InputMoments
from vsfix.trainers.averaging.module_noise import ModuleNoise
from vsfix.trainers.averaging.module_samples import named_outputs, state_kept
from vsfix.trainers.averaging.noisy_forward import NoisyForward
from vsfix.trainers.averaging.recording import Recording
from vsfix.trainers.averaging.unit_parameters import functional, new_tensors, write_tensors

LAYERS = {
    "bn": (nn.BatchNorm1d(6), (7, 6)),
    "bn of images": (nn.BatchNorm2d(6), (7, 6, 3, 3)),
    "bn without scale": (nn.BatchNorm1d(6, affine=False), (7, 6)),
    "linear": (nn.Linear(4, 6), (7, 4)),
    "linear without bias": (nn.Linear(4, 6, bias=False), (7, 4)),
    "conv": (nn.Conv2d(4, 6, 3, groups=2), (7, 4, 5, 5)),
    "transposed conv": (nn.ConvTranspose2d(4, 6, 2), (7, 4, 5, 5)),
    "transposed conv of groups": (nn.ConvTranspose1d(4, 6, 2, groups=2), (7, 4, 5)),
}


def unit_of(layer, x):
    module = nn.Sequential(nn.Dropout(), layer, nn.ReLU(), nn.Dropout())
    with state_kept(module), torch.no_grad():
        recording = Recording(module)
        recording.returned(named_outputs(NoisyForward(module, ModuleNoise(), recording).run(((x,), {}))), ())
    return module.eval(), recording.units()


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_new_parameters_give_a_z_plus_b(name, moments):
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            layer.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
            if layer.affine:
                layer.weight.normal_(generator=torch.Generator().manual_seed(3))
    module, units = unit_of(layer, x)
    rng = np.random.default_rng(4)
    a, b = rng.uniform(0.3, 2, 6), rng.normal(size=6)
    told = InputMoments(rng.normal(size=6), rng.normal(size=6)) if moments and "bn" in name else None
    tensors = new_tensors(module, units, {units[0].name: FoundParameters(a, b, told)})
    with torch.no_grad():
        z = layer(x)
        sides = (1, -1, *(1,) * (z.dim() - 2))
        wanted = torch.from_numpy(a).reshape(sides) * z.double() + torch.from_numpy(b).reshape(sides)
        found = functional(module[1], {key.removeprefix("1."): tensor for key, tensor in tensors.items()})(x)
    assert torch.allclose(found.double(), wanted, atol=2e-5)
    if told is not None:
        assert torch.allclose(
            torch.log(tensors["1.running_var"] / layer.running_var).double(),
            torch.from_numpy(told.log_ratio),
            atol=1e-5,
        )


def test_channels_that_do_not_change_keep_their_bits():
    layer, shape = LAYERS["conv"]
    module, units = unit_of(layer, torch.randn(shape))
    a, b = np.array([1, 2, 1, 1, 1, 1.0]), np.zeros(6)
    tensors = new_tensors(module, units, {"1": FoundParameters(a, b)})
    same = torch.arange(6) != 1
    assert torch.equal(tensors["1.weight"][same], layer.weight[same])
    assert torch.equal(tensors["1.weight"][1], 2 * layer.weight[1])
    assert new_tensors(module, units, {"1": FoundParameters(np.ones(6), b)}) == {}


def test_all_is_written_or_nothing():
    module = nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = {"1.weight": torch.full((6,), 2.0), "0.bias": torch.ones(6), "0.weight": torch.ones(5, 5)}
    with pytest.raises(RuntimeError):
        write_tensors(module, tensors)
    assert module[0].bias is None
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    tensors["0.weight"] = torch.ones(6, 4)
    weight = module[0].weight
    write_tensors(module, tensors)
    assert module[0].weight is weight
    assert torch.equal(module[0].bias, torch.ones(6))
