"""Two real networks that the onnx package brings along, through every pass. benchmarks/light_models.py takes all nine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model
from vsfix.graph_passes.ir.fold_constants import FoldConstants

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "light_models.py"


@pytest.fixture(scope="module")
def light_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("light_models", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(light_models: ModuleType, name: str):
    path = light_models.FOLDER / f"light_{name}.onnx"
    if not path.is_file():
        pytest.skip("this onnx package has no light models")
    return read_model(path)


@pytest.mark.parametrize(
    ("name", "counts"),
    [("squeezenet", ["0", "0", "1", "0"]), ("shufflenet", ["49", "0", "0", "49"])],
)
def test_every_pass_takes_a_real_network_and_its_outputs_are_unchanged(light_models, name, counts):
    model = load(light_models, name)
    assert light_models.walk(name, model)
    row = light_models.walk(name, light_models.with_weights(model)).split()
    assert row[4:8] == counts  # BatchNorms, unreadable, noise sources, folded


def test_a_changed_statistic_of_a_real_network_is_seen(light_models):
    model = light_models.with_weights(load(light_models, "shufflenet"))
    graph = import_graph(model)
    FoldConstants()(graph)
    last = find_batch_norms(graph)[-1]
    last.with_statistics(last.mean, last.variance * 1.01)
    with pytest.raises(ArithmeticError, match="the outputs differ"):
        light_models.compare(model, export_model(graph, model))
