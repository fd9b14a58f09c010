from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms, find_modules
from vsfix.graph_passes.errors import CheckFailedError, InputError, ModelError, OutputExistsError
from vsfix.graph_passes.io.model_file import import_graph, read_metadata, read_model
from vsfix.graph_passes.noise.marker import EXPORT_METADATA_KEY, is_switched_off, marker_label, read_marker
from vsfix.graph_passes.noise.noise import Noise
from vsfix.trainers.export import onnx_export
from vsfix.trainers.export.onnx_export import MAX_OPSET, MIN_OPSET, ExportResult, export_onnx
from vsfix.trainers.layers.noise_layers import Uout
from vsfix.trainers.layers.noise_sites import NoiseSites
from vsfix.trainers.networks.network import NetworkConfig, build_network

from .handmade_noise import DropPath, StochasticDepth

CLUTTER = {"Constant", "Shape", "Expand", "CastLike", "Identity", "Squeeze", "Concat", "Cast"}


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Zoo(nn.Module):
    """Every kind of noise source, and BatchNorms whose parameters all start equal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.drop = nn.Dropout(0.5)
        self.bn1 = nn.BatchNorm2d(8)
        self.uout = Uout(0.1)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.features = nn.Dropout2d(0.3)
        self.bn2 = nn.BatchNorm2d(8)
        self.none = nn.Dropout(0.0)
        self.alpha = nn.AlphaDropout(0.2)
        self.path = DropPath(0.1)
        self.depth = StochasticDepth(0.1, "batch")
        self.bn3 = nn.BatchNorm1d(8, affine=False)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.drop(self.conv1(x))))
        x = F.relu(self.bn2(self.features(self.conv2(self.uout(x)))))
        x = self.depth(self.path(self.alpha(self.none(x))))
        x = F.dropout(torch.flatten(x.mean((2, 3), keepdim=True), 1), 0.2, self.training)
        return self.classifier(torch.dropout(self.bn3(self.uout(x)), 0.4, self.training))


ZOO_MARKERS = (
    ("drop", Noise.parse("dropout:0.5")),
    ("uout", Noise.parse("uout:0.1")),
    ("features", Noise.parse("feature-dropout:0.3")),
    ("alpha", Noise.parse("alpha-dropout:0.2")),
    ("path", Noise.parse("drop-path:0.1")),
    ("dropout", Noise.parse("dropout:0.2")),
    ("uout_2", Noise.parse("uout:0.1")),
    ("dropout_2", Noise.parse("dropout:0.4")),
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> tuple[nn.Module, ExportResult]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Zoo()
        path = tmp_path_factory.mktemp("zoo") / "zoo.onnx"
        return module, export_onnx(module, torch.randn(4, 1, 8, 8), path, metadata={"author": "nobody"})


def run(path: Path, rows: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": rows.numpy()})[0]


def test_every_noise_is_marked_under_the_name_of_its_layer(zoo):
    assert zoo[1].markers == ZOO_MARKERS


def test_the_markers_read_back_from_the_file(zoo):
    graph = import_graph(read_model(zoo[1].path))
    found = [(marker_label(node), read_marker(node)) for node in graph.nodes if read_marker(node)]
    assert [(name, noise.kind) for name, noise in found] == [(name, noise.kind) for name, noise in ZOO_MARKERS]
    for (_, read), (_, noise) in zip(found, ZOO_MARKERS, strict=True):
        assert read.value == pytest.approx(noise.value, rel=1e-7)  # a ratio stands in the file as float32
    assert all(is_switched_off(node) for node in graph.nodes if node.op == "Dropout")


def test_what_can_not_be_marked_is_named_and_the_file_does_not_claim_to_be_complete(zoo):
    assert len(zoo[1].unmarked) == 1
    assert "StochasticDepth 'depth' (what shares a draw" in zoo[1].unmarked[0]
    assert read_metadata(read_model(zoo[1].path)) == {"author": "nobody"}


def test_every_batch_norm_keeps_statistics_of_its_own(zoo):
    model = read_model(zoo[1].path)
    assert zoo[1].batch_norms == ("bn1", "bn2", "bn3")
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert [node.input[4] for node in nodes] == ["bn1.running_var", "bn2.running_var", "bn3.running_var"]
    assert [node.input[3] for node in nodes] == ["bn1.running_mean", "bn2.running_mean", "bn3.running_mean"]
    names = [initializer.name for initializer in model.graph.initializer]
    assert len(set(names)) == len(names)
    # Equal values of a fresh network: gamma and running variance must still be two tensors.
    assert {"bn1.weight", "bn2.weight"} <= set(names)
    find_batch_norms(import_graph(model))


def test_no_clutter_is_left(zoo):
    model = read_model(zoo[1].path)
    assert not CLUTTER & {node.op_type for node in model.graph.node}
    assert {entry.domain for entry in model.opset_import} == {""}
    assert [len(node.input) for node in model.graph.node if node.op_type == "Conv"] == [2, 3]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_every_node_has_a_name_of_its_own(zoo):
    names = [node.name for node in read_model(zoo[1].path).graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_size_gives_the_numbers_of_torch(zoo, batch):
    module, result = zoo
    rows = torch.randn(batch, 1, 8, 8)
    with torch.no_grad():
        expected = module.eval()(rows)
    np.testing.assert_allclose(run(result.path, rows), expected.numpy(), rtol=1e-4, atol=1e-6)


def test_the_batch_axis_is_free_and_has_its_name(zoo):
    graph = read_model(zoo[1].path).graph
    for value in (graph.input[0], graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert (graph.input[0].name, graph.output[0].name) == ("input", "logits")


def test_the_result_says_how_near_it_is(zoo):
    assert zoo[1].snr_db > 100
    assert 0 <= zoo[1].max_abs_error < 1e-5
    assert zoo[1].opset == 18


@pytest.mark.long
@pytest.mark.parametrize(
    ("site", "noise", "producer", "consumer", "count"),
    [
        ("a", "dropout:0.8", "Conv", "BatchNormalization", 3),
        ("b", "uout:0.1", "Relu", "Conv", 3),
        ("last", "feature-dropout:0.3", "ReduceMean", "Reshape", 1),
    ],
)
def test_the_markers_of_a_site_stand_where_the_noise_stood(tmp_path, site, noise, producer, consumer, count):
    config = NetworkConfig("preresnet-8", 1, (8, 8), 10, NoiseSites(**{site: Noise.parse(noise)}))
    result = export_onnx(build_network(config), torch.randn(2, 1, 8, 8), tmp_path / "m.onnx")
    model = read_model(result.path)
    markers = [node for node in import_graph(model).nodes if read_marker(node)]
    assert len(markers) == len(result.markers) == count
    assert {node.i().op for node in markers} == {producer}
    assert {node.o().op for node in markers} == {consumer}
    assert result.unmarked == ()
    assert read_metadata(model) == {EXPORT_METADATA_KEY: str(count)}
    assert len(result.batch_norms) == 7
    assert not CLUTTER & {node.op_type for node in model.graph.node}


def test_a_network_without_noise_says_so_and_is_exported_silently(tmp_path, capfd, caplog):
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript")}
    config = NetworkConfig("mlp-2", 1, (8, 8), 10)
    result = export_onnx(build_network(config), torch.randn(1, 1, 8, 8), tmp_path / "m.onnx")
    assert result.markers == ()
    assert read_metadata(read_model(result.path)) == {EXPORT_METADATA_KEY: "0"}
    assert tuple(capfd.readouterr()) == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert {name: logging.getLogger(name).level for name in levels} == levels


class TunedDropout(nn.Dropout):
    """Owns a tensor with the name that the marker's ratio would have."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.register_buffer("ratio", torch.full((3,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.ratio


class Branches(nn.Module):
    """Noise whose result nothing uses, and noise whose marker can't have the first name it would take."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)
        self.drop = TunedDropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(x.flatten(1))
        F.dropout(hidden, 0.3, self.training)
        return self.drop(hidden)


def test_noise_whose_result_nothing_uses_is_no_noise_of_the_file(tmp_path, caplog):
    result = export_onnx(Branches(), torch.randn(3, 1, 8, 8), tmp_path / "m.onnx")
    assert result.markers == (("drop_2", Noise.parse("dropout:0.5")),)
    assert result.unmarked == ()
    assert read_metadata(read_model(result.path)) == {EXPORT_METADATA_KEY: "1"}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.long
@pytest.mark.parametrize("opset", [MIN_OPSET, 17, MAX_OPSET])
def test_other_opsets_hold_the_same_network(tmp_path, opset):
    config = NetworkConfig("preresnet-8", 1, (8, 8), 10, NoiseSites(a=Noise.parse("uout:0.1")))
    result = export_onnx(build_network(config), torch.randn(2, 1, 8, 8), tmp_path / "m.onnx", opset=opset)
    model = read_model(result.path)
    assert [entry.version for entry in model.opset_import] == [opset]
    assert sum(read_marker(node) is not None for node in import_graph(model).nodes) == 3
    assert result.snr_db > 100
    assert all(node.name for node in model.graph.node)


@pytest.mark.parametrize("opset", [MIN_OPSET - 1, MAX_OPSET + 1])
def test_an_opset_out_of_range_is_refused_with_the_range(tmp_path, opset):
    with pytest.raises(InputError, match=f"between {MIN_OPSET} and {MAX_OPSET}"):
        export_onnx(Branches(), torch.randn(2, 1, 8, 8), tmp_path / "m.onnx", opset=opset)


def perturbed(assemble: Callable[..., onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
    """The planted mistake: weights that are a ten-thousandth too large."""

    def wrapper(*arguments: object) -> onnx.ModelProto:
        model = assemble(*arguments)
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "linear.weight")
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.0001)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, "linear.weight"))
        return model

    return wrapper


def test_a_file_that_differs_from_torch_does_not_appear_and_what_stood_there_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_assemble", perturbed(onnx_export._assemble))
    path = tmp_path / "m.onnx"
    path.write_text("older")
    module = Branches().train()
    with pytest.raises(CheckFailedError, match="differs from torch: SNR"):
        export_onnx(module, torch.randn(3, 1, 8, 8), path, force=True)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]
    assert module.training
    assert module.drop.training


def test_an_existing_file_needs_force(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("older")
    with pytest.raises(OutputExistsError, match="--force"):
        export_onnx(Branches(), torch.randn(3, 1, 8, 8), path)
    assert path.read_text() == "older"


def test_flags_and_hooks_are_as_before_also_after_an_error(tmp_path):
    module = Branches().train()
    module.drop.eval()
    with pytest.raises(ModelError):
        export_onnx(module, torch.randn(3, 1, 8, 9), tmp_path / "m.onnx")
    assert (module.training, module.linear.training, module.drop.training) == (True, True, False)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert list(tmp_path.iterdir()) == []


class DeadEnd(nn.Module):
    """A BatchNorm whose result nobody reads, and one that stores no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.BatchNorm2d(1)
        self.unused = nn.BatchNorm2d(1)
        self.stateless = nn.BatchNorm2d(1, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.unused(x).relu()
        return self.stateless(self.used(x))


def test_a_batch_norm_that_the_output_does_not_depend_on_is_left_out(tmp_path):
    assert export_onnx(DeadEnd(), torch.randn(2, 1, 8, 8), tmp_path / "m.onnx").batch_norms == ("used",)


def test_a_batch_norm_that_the_exporter_lost_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "find_modules", lambda graph: find_modules(graph)[1:])
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))
    with pytest.raises(ModelError, match=r"did not keep 1 BatchNorms \(2\)"):
        export_onnx(module, torch.randn(2, 1, 8, 8), tmp_path / "m.onnx")


class Offset(nn.Module):
    """A large common offset that the BatchNorm subtracts again: float32 keeps some 80 dB of it, torch's too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3)
        self.bn = nn.BatchNorm2d(16, momentum=None)

    def forward(self, x):
        return self.bn(self.conv(x + 300))


def test_a_network_that_float32_serves_badly_is_judged_by_float64(tmp_path):
    torch.manual_seed(0)
    module, x = Offset(), torch.randn(8, 16, 12, 12)
    module.train()(x)
    result = export_onnx(module.eval(), x, tmp_path / "m.onnx")
    assert 60 < result.snr_db < 100


def test_a_file_that_is_worse_than_torch_is_still_refused(tmp_path, monkeypatch):
    from vsfix.trainers.export import onnx_export

    torch.manual_seed(0)
    module, x = Offset(), torch.randn(8, 16, 12, 12)
    module.train()(x)
    monkeypatch.setattr(onnx_export, "WORSE_THAN_TORCH_DB", -60.0)
    with pytest.raises(CheckFailedError, match="differs from torch: SNR"):
        export_onnx(module.eval(), x, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_batch_norms_that_keep_no_statistics_are_named(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4))
    result = export_onnx(module.eval(), torch.randn(4, 1, 8, 8), tmp_path / "m.onnx")
    assert result.untracked == ("1",)
    assert result.batch_norms == ("2",)
