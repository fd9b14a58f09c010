from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch

from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner
from vsfix.pipeline.backends.torch_runner import TorchRunner
from vsfix.trainers.export.exporting import exportable_factory
from vsfix.trainers.export.onnx_export import export_onnx

SOURCE = """
import sys
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.25), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    def forward(self, x):
        return self.layers(x)

class Makers:
    network = Network

def broken():
    raise RuntimeError("no such checkpoint\\nsecond line")

def wrong():
    return 3

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 4), nn.BatchNorm1d(4)
    def forward(self, ids):
        return self.norm(self.table(ids).mean(1))

class Two(nn.Module):
    def forward(self, pixels, meta, scale=1.0):
        return pixels.mean((2, 3)) + meta.mean(1, keepdim=True) * scale

class Positive(nn.Module):
    def forward(self, x):
        if (x < 0).any():
            raise ValueError("negative")
        return x + 1.0

number = 7
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A module in the current folder."""
    (tmp_path / "mynetwork.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mynetwork", raising=False)
    yield tmp_path
    sys.modules.pop("mynetwork", None)


def weights_of(package, **changes):
    """A state_dict of the module, saved; returns the file and a network that has it."""
    sys.path.insert(0, str(package))
    try:
        from mynetwork import Network  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(package))
    network = Network().eval()
    state = {**network.state_dict(), **changes}
    path = package / "weights.pt"
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, path)
    return path, network


def test_a_factory_in_the_current_folder_is_exported_with_its_weights(package):
    weights, network = weights_of(package)
    before = list(sys.path)
    found = exportable_factory("mynetwork:Network", (6,), weights)
    assert sys.path == before
    result = export_onnx(found.module, found.example, package / "m.onnx")
    assert [str(noise) for _, noise in result.markers] == ["dropout:0.25"]
    x = {"input": np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)}
    logits = OnnxRuntimeRunner(package / "m.onnx").run(x)["logits"]
    np.testing.assert_allclose(logits, TorchRunner(network).run(x)["logits"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nopackage:network", "can't be imported .ModuleNotFoundError: No module named 'nopackage'"),
        ("mynetwork:nothing", "can't be imported .AttributeError"),
        ("mynetwork:number", "is a int; name a function"),
        ("mynetwork:broken", "fails when called without arguments .RuntimeError: no such checkpoint.$"),
        ("mynetwork:wrong", "returns a int"),
        (":Network", "can't be imported"),
        ("mynetwork:", "can't be imported"),
    ],
)
def test_a_factory_that_does_not_serve_is_refused_in_one_line(package, source, words):
    with pytest.raises(InputError, match=words):
        exportable_factory(source, (6,))


def test_the_shape_of_one_input_where_the_forward_takes_two_names_the_options_that_work(package):
    with pytest.raises(InputError, match=r"Two.forward takes pixels, meta, and --input-shape") as caught:
        exportable_factory("mynetwork:Two", (3, 8, 8))
    options = re.findall(r"--input (\S+:[^\s,]+)", str(caught.value))
    assert options == ["pixels:Nx3x8x8", "meta:NxC"]
    found = exportable_factory("mynetwork:Two", options)
    export_onnx(found.module, found.example, package / "m.onnx")
    assert (package / "m.onnx").is_file()


@pytest.mark.parametrize(
    ("inputs", "option"), [((6,), "input:Nx6:int64:0..8"), (["ids:NxT=6"], "ids:NxT=6:int64:0..8")]
)
def test_floats_given_to_a_table_of_tokens_name_the_option_that_works(package, inputs, option):
    found = exportable_factory("mynetwork:Tagger", inputs)
    with pytest.raises(ModelError, match="it takes whole numbers: write --input") as caught:
        export_onnx(found.module, found.example, package / "m.onnx")
    assert re.findall(r"--input ([^\s,]+)", str(caught.value)) == [option]
    found = exportable_factory("mynetwork:Tagger", [option])
    export_onnx(found.module, found.example, package / "m.onnx")
    assert (package / "m.onnx").is_file()


@pytest.mark.parametrize("source", ["mynetwork:Network", "mynetwork:Positive"])
def test_a_failure_of_another_kind_is_not_put_down_to_whole_numbers(source, package):
    found = exportable_factory(source, (7,))
    with pytest.raises(ModelError, match="fails on an input") as caught:
        export_onnx(found.module, found.example, package / "m.onnx")
    assert "whole numbers" not in str(caught.value)


def test_weights_of_another_network_are_refused(package):
    for changes, words in [
        ({"layers.0.bias": None}, "lacks layers.0.bias"),
        ({"extra": torch.zeros(1)}, "has too much: extra"),
        ({"layers.0.bias": torch.zeros(4)}, "do not fit the module: .*size mismatch"),
    ]:
        weights, _ = weights_of(package, **changes)
        with pytest.raises(InputError, match=words):
            exportable_factory("mynetwork:Makers.network", (6,), weights)
        sys.modules.pop("mynetwork")


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"text", "can't be read"), ([1, 2], "holds no state_dict"), (print, "holds code")],
)
def test_a_file_without_weights_is_refused(package, content, words):
    path = package / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=words):
        exportable_factory("mynetwork:Network", (6,), path)
