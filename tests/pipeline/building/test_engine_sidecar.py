"""A sidecar that is read again, and what it refuses."""

from __future__ import annotations

import json
import os

import pytest

from vsfix.graph_passes.errors import BuildError, InputError
from vsfix.pipeline.building.engine_sidecar import read_sidecar
from vsfix.pipeline.tensorrt.parsed_network import NetworkTensor

from .two_norm_network import build_network, network_weights, write_network


@pytest.fixture
def built(install_tensorrt, parse, tmp_path, monkeypatch):
    """An engine, and the report of its build."""
    install_tensorrt("10")
    monkeypatch.setattr("vsfix.pipeline.building.building.visible_capability", lambda: "sm89")
    model = write_network(parse, tmp_path / "m.onnx", network_weights())
    return tmp_path / "e.plan", build_network(model, tmp_path / "e.plan")


def rewrite(engine, change) -> None:
    path = engine.with_name("e.plan.json")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_what_is_read_is_what_was_written(built):
    engine, report = built
    found = read_sidecar(engine)
    assert (found.runtime, found.version, found.gpu) == ("tensorrt", "10.13.0", "sm89")
    assert found.inputs == report.inputs == (NetworkTensor("x", "FLOAT", (-1, 3, 8, 8)),)
    assert found.outputs == report.outputs == (NetworkTensor("y", "FLOAT", (-1, 4, 6, 6)),)
    assert (found.profile, found.metadata) == (report.profile, report.metadata)


def test_what_an_older_version_said_of_refits_is_passed_over(built):
    engine, report = built
    entry = {"marked": "individual", "structure": "0" * 64, "weights": {"w": {"shape": [4], "type": "float32"}}}
    rewrite(engine, lambda document: document.update(refit=entry, refits=[]))
    assert read_sidecar(engine).profile == report.profile


@pytest.mark.parametrize("key", ["inputs", "outputs", "gpu", "metadata", "plan", "profile", "model", "precision"])
def test_a_sidecar_of_another_version_says_that_the_engine_must_be_built_again(built, key):
    engine, _ = built
    rewrite(engine, lambda document: document.pop(key))
    with pytest.raises(InputError, match=rf"says too little of the engine \('{key}'\).*build it anew"):
        read_sidecar(engine)


@pytest.mark.parametrize(
    ("key", "within"),
    [("model", "path"), ("model", "weights"), ("precision", "network"), ("precision", "tensor_float")],
)
def test_what_is_missing_deeper_down_is_named_as_well(built, key, within):
    engine, _ = built
    rewrite(engine, lambda document: document[key].pop(within))
    with pytest.raises(InputError, match=rf"says too little of the engine \('{within}'\)"):
        read_sidecar(engine)


def test_another_schema_and_no_json_are_refused(built):
    engine, _ = built
    rewrite(engine, lambda document: document.update(schema_version=99))
    with pytest.raises(InputError, match="schema_version 99"):
        read_sidecar(engine)
    for text in ("no JSON", "[]", "[" * 100_000):
        engine.with_name("e.plan.json").write_text(text)
        with pytest.raises(InputError, match="can't be read as a sidecar"):
            read_sidecar(engine)


def test_a_missing_engine_or_sidecar_is_named(built):
    engine, _ = built
    engine.with_name("e.plan.json").unlink()
    with pytest.raises(InputError, match=r"e\.plan\.json: no such file"):
        read_sidecar(engine)
    engine.unlink()
    with pytest.raises(InputError, match=r"e\.plan: no such file"):
        read_sidecar(engine)


def test_a_plan_that_was_cut_short_is_refused(built):
    engine, _ = built
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(BuildError, match="is not the plan"):
        read_sidecar(engine)


def test_a_pipe_is_not_waited_for_and_what_no_sidecar_can_be_is_not_read(built):
    engine, _ = built
    path = engine.with_name("e.plan.json")
    os.truncate(path, 1 << 40)
    with pytest.raises(InputError, match=r"e\.plan\.json: can't be read as a sidecar .* larger than 256 MiB"):
        read_sidecar(engine)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"e\.plan\.json: can't be read as a sidecar .* pipe"):
        read_sidecar(engine)
    engine.unlink()
    os.mkfifo(engine)
    with pytest.raises(InputError, match=r"e\.plan: is a pipe"):
        read_sidecar(engine)


def shapes(*sides: list[int]) -> dict[str, dict[str, list[int]]]:
    return {"x": dict(zip(("minimum", "optimum", "maximum"), sides, strict=True))}


@pytest.mark.parametrize(
    "entries",
    [
        *({"gpu": gpu} for gpu in (5, "", "s", ["sm89"], "sm../x", "sm8\n9")),
        {"profile": shapes([1, 3], [1, 3], [-4, 3])},
        {"profile": shapes([1, 3], [1, 3], [10**30, 3])},
        {"profile": shapes([1, 3], [1], [4, 3])},
        *(
            {"inputs": [{"name": "x", "type": "FLOAT", "shape": shape}]}
            for shape in ([1e300], [float("inf")], [-2], "ab")
        ),
        {"inputs": [{"name": "\ud800", "type": "FLOAT", "shape": [1]}]},
        {"outputs": [{"name": 5, "type": "FLOAT", "shape": [1]}]},
    ],
)
def test_values_of_another_kind_are_refused_in_one_line(built, entries):
    engine, _ = built
    rewrite(engine, lambda document: document.update(entries))
    with pytest.raises(InputError, match=r"e\.plan\.json: says too little of the engine \("):
        read_sidecar(engine)
