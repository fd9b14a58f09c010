from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.layers.noise_layers import Uout
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig, build_network

HALF, TENTH = Noise.parse("dropout:0.5"), Noise.parse("uout:0.1")
EVERYWHERE = NoiseSites(a=HALF, b=TENTH, last=Noise.parse("dropout:0.2"))


@pytest.mark.parametrize(
    ("texts", "sites"),
    [
        (["none"], NoiseSites()),
        ([], NoiseSites()),
        (["dropout:0.5"], NoiseSites(b=HALF)),
        (["a=dropout:0.5", "uout:0.1"], NoiseSites(a=HALF, b=TENTH)),
        (["last=uout:0.1"], NoiseSites(last=TENTH)),
    ],
)
def test_a_text_that_names_no_site_stands_at_the_one_that_is_given(texts, sites):
    assert NoiseSites.parse(texts, "b") == sites


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["c=dropout:0.5"], "site 'c' must be one of a, b, last"),
        (["dropout:0.5", "a=uout:0.1"], "site a has dropout:0.5 already"),
        (["none", "last=uout:0.1"], "'none' stands alone"),
        (["a=none"], "'none' stands alone"),
        (["dropout:1.5"], "ratio"),
        (["gauss:1"], "kind"),
        (["dropout"], "KIND:VALUE"),
    ],
)
def test_what_is_no_list_of_sites_is_refused(texts, message):
    with pytest.raises(InputError, match=message):
        NoiseSites.parse(texts)


def test_sites_are_written_and_read():
    assert NoiseSites.from_dict(json.loads(json.dumps(EVERYWHERE.to_dict()))) == EVERYWHERE
    assert str(EVERYWHERE) == "a=dropout:0.5, b=uout:0.1, last=dropout:0.2"
    assert str(NoiseSites()) == "none"


@pytest.mark.parametrize(
    ("model", "order"),
    [
        ("preresnet-8", "Dropout BatchNorm2d Uout Conv2d"),
        ("wrn-10-1", "Dropout BatchNorm2d Uout Conv2d"),
        ("densenet-10-4", "Dropout BatchNorm2d Uout Conv2d"),
        ("resnext-11-2x3d", "Uout Conv2d Dropout BatchNorm2d"),
        ("mlp-1", "Dropout BatchNorm1d Uout Dropout"),
    ],
)
def test_several_sites_each_have_their_noise(model, order):
    network = build_network(NetworkConfig(model, 1, (8, 8), 10, EVERYWHERE))
    kinds = (nn.Dropout, Uout, nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d)
    seen: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, kinds) and "shortcut" not in name:
            module.register_forward_hook(lambda layer, *_: seen.append(type(layer).__name__))
    network.eval()(torch.randn(2, 1, 8, 8))
    assert order in " ".join(seen)
    assert [seen.count("Uout"), seen.count("Dropout")] == [max(seen.count("Uout"), 1), seen.count("Uout") + 1]
    assert network.noise.p == 0.2


@pytest.mark.parametrize("model", ["preresnet-8", "densenet-10-4", "resnext-11-2x3d", "mlp-1"])
def test_noise_changes_no_name_and_no_first_weight_of_a_network(model):
    states = []
    for sites in (NoiseSites(), NoiseSites(a=HALF), EVERYWHERE):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            states.append(build_network(NetworkConfig(model, 1, (8, 8), 10, sites)).state_dict())
    for state in states[1:]:
        assert list(state) == list(states[0])
        assert all(torch.equal(state[name], states[0][name]) for name in state)
