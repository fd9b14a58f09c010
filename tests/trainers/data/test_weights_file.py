"""Weights in the forms in which training leaves them, each loaded into a module of its own."""

from __future__ import annotations

import argparse
import json
import pathlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from vsfix.graph_passes.errors import InputError
from vsfix.trainers.data.weights_file import load_weights


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.bn = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn(self.stem(x)).relu())


def made(seed: int) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network().eval()
        network.bn.running_mean.normal_()
        return network


TRAINED, AVERAGE = made(1), made(2)
STATE = TRAINED.state_dict()


def prefixed(prefix: str, state: Mapping[str, torch.Tensor] = STATE) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def compiled_part() -> dict[str, torch.Tensor]:
    network = made(1)
    network.stem = torch.compile(network.stem, backend="eager")
    return network.state_dict()


def averaged() -> dict[str, torch.Tensor]:
    return AveragedModel(TRAINED).state_dict()


def safetensors(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """The format by hand: the length of a header, the header, the bytes."""
    header, values = {"__metadata__": {"format": "pt"}}, b""
    names = {torch.float32: "F32", torch.int64: "I64", torch.float16: "F16"}
    for name, tensor in state.items():
        data = tensor.numpy().tobytes()
        place = [len(values), len(values) + len(data)]
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        values += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)


FORMS = {
    "a state_dict": (STATE, ""),
    "without counters": ({name: t for name, t in STATE.items() if "num_batches" not in name}, ""),
    "of DDP": (prefixed("module."), "module"),
    "of torch.compile": (prefixed("_orig_mod."), "_orig_mod"),
    "of DDP around torch.compile": (prefixed("module._orig_mod."), "module._orig_mod"),
    "with a compiled part": (compiled_part(), ""),
    "with a DDP part": ({name.replace("stem.", "stem.module."): t for name, t in STATE.items()}, ""),
    "under model": (
        {"model": STATE, "epoch": 3, "optimizer": torch.optim.Adam(TRAINED.parameters()).state_dict()},
        "model",
    ),
    "under state_dict": ({"state_dict": prefixed("module."), "best_acc": 0.9}, "state_dict.module"),
    "under model_state_dict": ({"model_state_dict": STATE, "loss": torch.tensor(1.0)}, "model_state_dict"),
    "under net": ({"net": STATE}, "net"),
    "of Lightning": (
        {"state_dict": {**prefixed("model."), "loss.weight": torch.ones(2)}, "pytorch-lightning_version": "2.5.0"},
        "state_dict.model (left out: loss.weight)",
    ),
    "averaged alone": (averaged(), "module"),
    "under ema": ({"ema": STATE}, "ema"),
    "with arguments and numbers of numpy": (
        {"model": STATE, "args": argparse.Namespace(lr=0.1), "best": np.float64(3), "path": pathlib.Path("x")},
        "model",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_where_they_are(tmp_path, form):
    content, where = FORMS[form]
    torch.save(content, tmp_path / "w.pt")
    network = Network().eval()
    found = load_weights(network, tmp_path / "w.pt")
    assert found.source == f"{tmp_path / 'w.pt'}{', ' if where else ''}{where}"
    assert found.averages == ()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x), TRAINED(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_safetensors_are_read_whatever_their_suffix(tmp_path, name):
    safetensors({**STATE, "stem.weight": STATE["stem.weight"].half()}, tmp_path / name)
    network = Network()
    load_weights(network, tmp_path / name)
    torch.testing.assert_close(network.head.weight, TRAINED.head.weight, rtol=0, atol=0)
    torch.testing.assert_close(network.stem.weight, TRAINED.stem.weight.half().float(), rtol=0, atol=0)


@pytest.mark.parametrize("cut", [20, -1, "shape", "offset"])
def test_damaged_safetensors_are_refused_in_one_line(tmp_path, cut):
    path = tmp_path / "w.safetensors"
    safetensors(STATE, path)
    content = path.read_bytes()
    if isinstance(cut, int):
        path.write_bytes(content[:cut])
    else:
        old, new = (b"[4, 3]", b"[4, 9]") if cut == "shape" else (b'"data_offsets": [0', b'"data_offsets": [9')
        path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(InputError, match=r"safetensors|can't be read") as caught:
        load_weights(Network(), path)
    assert "\n" not in str(caught.value)


BOTH = {
    "beside model": ({"model": STATE, "model_ema": AVERAGE.state_dict()}, "model_ema"),
    "beside state_dict": ({"state_dict": STATE, "state_dict_ema": AVERAGE.state_dict()}, "state_dict_ema"),
    "an AveragedModel": ({"net": STATE, "ema": AveragedModel(AVERAGE).state_dict()}, "ema.module"),
    "in one state_dict": (
        {"state_dict": prefixed("model.") | prefixed("ema_model.", AVERAGE.state_dict())},
        "state_dict.ema_model",
    ),
}


@pytest.mark.parametrize("form", BOTH)
def test_plain_weights_are_taken_before_averages_which_are_named_and_can_be_chosen(tmp_path, form):
    content, key = BOTH[form]
    torch.save(content, tmp_path / "w.pt")
    network = Network()
    assert load_weights(network, tmp_path / "w.pt").averages == (key,)
    assert torch.equal(network.head.weight, TRAINED.head.weight)
    assert load_weights(network, tmp_path / "w.pt", key).averages == ()
    assert torch.equal(network.head.weight, AVERAGE.head.weight)
    if "." in key:  # the keys of the dicts alone are enough where they say all
        parent = key.rpartition(".")[0]
        if parent != "state_dict":
            load_weights(network, tmp_path / "w.pt", parent)


def test_several_places_are_an_error_that_names_the_keys(tmp_path):
    torch.save({"student": STATE, "teacher": AVERAGE.state_dict()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"in 2 places; choose with --weights-key: student, teacher$"):
        load_weights(Network(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"'discriminator' holds no weights of this module; choose with .*: student"):
        load_weights(Network(), tmp_path / "w.pt", "discriminator")
    network = Network()
    load_weights(network, tmp_path / "w.pt", "teacher")
    assert torch.equal(network.head.weight, AVERAGE.head.weight)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({name: t for name, t in STATE.items() if name != "head.bias"}, "lacks head.bias; give the weights"),
        ({"model": {**STATE, "head.scale": torch.ones(1)}}, "w.pt, model: has too much: head.scale"),
        (prefixed("module.") | {"module.more": torch.ones(1)}, "has too much: more; give the weights"),
        ({**STATE, "head.bias": torch.ones(5)}, "do not fit the module: .*size mismatch for head.bias"),
        ({"other.weight": torch.ones(1)}, "lacks bn.bias, bn.running_mean, bn.running_var and 5 more"),
        ({**STATE, "head.bias": torch.ones(2).to(torch.int8)}, "head.bias is int8, that of the module float32"),
        ({**STATE, "head.bias": torch.ones(2) * 1j}, "head.bias is complex64, that of the module float32"),
        ({"optimizer": STATE, "epoch": 3}, "holds no state_dict"),
        ({"optimizer_states": {"exp_avg": STATE}}, "holds no state_dict"),
        ({"epoch": 3}, "holds no state_dict; save module.state_dict()"),
        ([1, 2], "holds no state_dict but a list"),
    ],
)
def test_weights_of_another_module_are_refused_in_one_line(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pt")
    network = Network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match=words) as caught:
        load_weights(network, tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    if "size mismatch" not in words:
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_safetensors_with_sides_that_no_tensor_has_are_refused_in_one_line(tmp_path):
    header = {"weight": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(InputError, match="is a damaged safetensors file"):
        load_weights(Network(), tmp_path / "w.safetensors")


def test_safetensors_of_a_type_that_is_not_read_are_not_called_damaged(tmp_path):
    safetensors(STATE, tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(content.replace(b'"F32"', b'"F8N"', 1))
    with pytest.raises(InputError, match=r"is F8N, which is not read; save it as F32$"):
        load_weights(Network(), tmp_path / "w.safetensors")


def test_state_that_is_no_tensor_stays_the_own_of_a_module(tmp_path):
    class WithState(Network):
        def get_extra_state(self) -> object:
            return {"calls": 1}

        def set_extra_state(self, state: object) -> None:
            raise AssertionError(state)

    torch.save(WithState().state_dict() | STATE, tmp_path / "w.pt")
    network = WithState()
    load_weights(network, tmp_path / "w.pt")
    assert torch.equal(network.head.weight, TRAINED.head.weight)


def test_a_module_that_can_not_take_weights_is_an_error_of_one_line(tmp_path):
    class Hooked(Network):
        def __init__(self) -> None:
            super().__init__()
            self.register_load_state_dict_pre_hook(lambda *_: {}["old"])

    torch.save(STATE, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"do not fit the module: 'old'$"):
        load_weights(Hooked(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="has no shape before a first run; let the factory run it once"):
        load_weights(nn.Sequential(nn.LazyLinear(3)), tmp_path / "w.pt")


class Tied(nn.Module):
    def __init__(self, *, turned: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = nn.Parameter(self.first.weight.T) if turned else self.first.weight


def test_tied_weights_that_differ_are_refused(tmp_path):
    weights = {"first.weight": torch.ones(3, 3), "second.weight": torch.zeros(3, 3)}
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"first\.weight and second\.weight differ, and the module has one tensor"):
        load_weights(Tied(), tmp_path / "w.pt")


def test_a_weight_that_is_another_one_turned_is_not_taken_for_it(tmp_path):
    weight = torch.arange(9.0).reshape(3, 3)
    torch.save({"first.weight": weight, "second.weight": weight.T}, tmp_path / "both.pt")
    torch.save({"first.weight": weight}, tmp_path / "one.pt")
    module = Tied(turned=True)
    load_weights(module, tmp_path / "both.pt")
    assert torch.equal(module.second.weight, weight.T)
    with pytest.raises(InputError, match=r"lacks second\.weight"):
        load_weights(module, tmp_path / "one.pt")


@pytest.mark.parametrize("kept", ["embedding.weight", "head.weight"])
def test_tied_weights_may_be_there_once_by_either_name(tmp_path, kept):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    safetensors({kept: torch.ones(5, 3)}, tmp_path / "w.safetensors")
    tied = Tied()
    load_weights(tied, tmp_path / "w.safetensors")
    assert tied.head.weight is tied.embedding.weight
    assert torch.equal(tied.head.weight, torch.ones(5, 3))


class Trap:
    """Leaves a file where it is called."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_no_code_of_a_file_runs(tmp_path):
    torch.save({"model": STATE, "trap": Trap(tmp_path / "sprung")}, tmp_path / "w.pt")
    load_weights(Network(), tmp_path / "w.pt")
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_code_as_a_whole_are_named_with_a_way_to_their_weights_that_works(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    torch.save(nn.Linear(3, 4), tmp_path / "whole.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.jit.save(torch.jit.script(TRAINED), tmp_path / "scripted.pt")
    torch.export.save(torch.export.export(TRAINED, (torch.zeros(2, 3),)), tmp_path / "program.pt2")
    for name, words in (
        ("whole.pt", r"is a whole module .*torch.save\(torch.load\('.*whole.pt', weights_only=False\)"),
        ("scripted.pt", r"is a TorchScript archive.*torch.save\(torch.jit.load\('.*scripted.pt'\).state_dict\(\)"),
        ("program.pt2", r"is an ExportedProgram; in Python: vsfix.export\(torch.export.load\('.*program.pt2'\)\)"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            load_weights(Network(), tmp_path / name)
        if "weights.pt" in str(caught.value):
            monkeypatch.chdir(elsewhere)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit.load is deprecated too
                exec(str(caught.value).partition("trust it: ")[2], {"torch": torch})
            load_weights(nn.Linear(3, 4) if name == "whole.pt" else Network(), elsewhere / "weights.pt")
