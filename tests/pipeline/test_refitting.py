"""An engine that takes the weights of a repaired model, shown on a stand-in for TensorRT that keeps weights."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from vsfix.graph_passes.errors import BuildError, InputError, MissingComponentError, OutputExistsError
from vsfix.graph_passes.model_file import read_model
from vsfix.pipeline.backends.opening import open_runner
from vsfix.pipeline.refit_form import take_refit_form
from vsfix.pipeline.refitting import refit

from .fake_refit import held_weights
from .fake_tensorrt import Network
from .refit_network import GRAPH, REFITTABLE, build_refittable, network_weights, repaired_weights, write_network

VERSIONS = ("8.6", "10", "11")


@pytest.fixture
def files(parse, tmp_path):
    """The original and the repaired network, in one type."""

    def write(dtype=np.float32):
        return (
            write_network(parse, tmp_path / "original.onnx", network_weights(), dtype),
            write_network(parse, tmp_path / "repaired.onnx", repaired_weights(), dtype),
        )

    return write


@pytest.fixture
def engine(install_tensorrt, files, tmp_path):
    """A refittable engine of the original network, built with 11."""
    install_tensorrt("11")
    build_refittable(files()[0], tmp_path / "e.plan")
    return tmp_path / "e.plan"


def assert_holds(engine, model):
    wanted = take_refit_form(model, read_model(model)).weights
    found = held_weights(engine.read_bytes())
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values.ravel(), err_msg=name)


@pytest.mark.parametrize(
    ("version", "dtype"),
    [*((version, dtype) for version in VERSIONS for dtype in (np.float32, np.float16)), ("11", ml_dtypes.bfloat16)],
)
def test_the_engine_holds_the_weights_of_the_repaired_model(install_tensorrt, files, tmp_path, version, dtype):
    install_tensorrt(version)
    original, repaired = files(dtype)
    report = build_refittable(original, tmp_path / "e.plan")
    assert report.refit is not None
    assert (report.refit.marked, tuple(report.refit.weights)) == (
        "all" if version == "8.6" else "individual",
        REFITTABLE,
    )
    assert_holds(tmp_path / "e.plan", original)
    refit(tmp_path / "e.plan", repaired, tmp_path / "new.plan")
    assert_holds(tmp_path / "new.plan", repaired)
    assert_holds(tmp_path / "e.plan", original)


def test_exactly_the_named_weights_are_marked(install_tensorrt, files, tmp_path):
    library = install_tensorrt("11")
    build_refittable(files()[0], tmp_path / "e.plan")
    ((network, config),) = library.builds
    assert network.marked == set(REFITTABLE)
    assert config.flags == {library.BuilderFlag.REFIT_INDIVIDUAL}
    build_refittable(files()[0], tmp_path / "e.plan", refit=False)
    assert held_weights((tmp_path / "e.plan").read_bytes()) == {}
    assert json.loads((tmp_path / "e.plan.json").read_text())["refit"] is None


def test_weights_that_differ_are_set_and_those_that_are_fused_with_them_again(engine, parse, tmp_path):
    changed = network_weights()
    changed["s2"] = changed["s2"] + 1  # of the second BatchNorm: its shift alone
    changed["b"] = changed["b"] + 1  # the bias of the convolution, which is fused with its kernel
    report = refit(engine, write_network(parse, tmp_path / "m.onnx", changed), tmp_path / "new.plan")
    assert (set(report.changed), set(report.also_set), report.kept) == ({"b", "last.shift"}, {"w"}, 2)


def test_the_sidecar_tells_the_history_and_the_new_engine_can_be_refitted_again(engine, files, tmp_path):
    original, repaired = files()
    new, back = tmp_path / "new.plan", tmp_path / "back.plan"
    refit(engine, repaired, new)
    refit(new, original, back)
    assert_holds(back, original)
    first, last = (json.loads(path.with_name(path.name + ".json").read_text()) for path in (engine, back))
    assert [entry["parent"]["plan"]["name"] for entry in last["refits"]] == ["e.plan", "new.plan"]
    assert last["refits"][0]["parent"]["model"]["sha256"] == first["model"]["sha256"] == last["model"]["sha256"]
    assert last["refit"] == first["refit"]
    assert last["read_back"]["status"] == "SKIP"


def test_nothing_new_is_an_error(engine, files, tmp_path):
    with pytest.raises(InputError, match="there is nothing to refit"):
        refit(engine, files()[0], tmp_path / "new.plan")


OTHERS = {
    "a shape": (GRAPH.replace("6, 6", "8, 8"), {"w": np.ones((4, 3, 1, 1))}, r"'w' is float32 \(4, 3, 1, 1\)"),
    "a node": (GRAPH.replace("Relu", "Elu"), {}, "its nodes, their names, or weights that can't be refitted"),
    "a name": (GRAPH.replace("[last]", "[end]"), {}, "it lacks 'last.scale', 'last.shift'"),
    "a missing layer": (
        GRAPH.replace("[last] y = BatchNormalization (r, g2, s2, m2, v2)", "y = Identity (r)"),
        {},
        "it lacks 'last.scale'",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_network_is_refused_with_what_is_other(engine, parse, tmp_path, case):
    graph, weights, words = OTHERS[case]
    model = write_network(parse, tmp_path / "m.onnx", repaired_weights() | weights, graph=graph)
    with pytest.raises(InputError, match=f"is not the network that .*{words}"):
        refit(engine, model, tmp_path / "new.plan")
    assert not (tmp_path / "new.plan").exists()


def test_an_engine_that_was_built_without_refit_is_refused(install_tensorrt, files, tmp_path):
    install_tensorrt("11")
    build_refittable(files()[0], tmp_path / "e.plan", refit=False)
    with pytest.raises(InputError, match="was built without --refit"):
        refit(tmp_path / "e.plan", files()[1], tmp_path / "new.plan")


def test_a_plan_that_is_not_that_of_its_sidecar_is_refused(engine, files, tmp_path):
    engine.write_bytes(engine.read_bytes() + b" ")
    with pytest.raises(BuildError, match=r"is not the plan that e\.plan\.json describes"):
        refit(engine, files()[1], tmp_path / "new.plan")


def test_another_version_of_tensorrt_is_refused(engine, files, tmp_path, install_tensorrt):
    install_tensorrt("10")
    with pytest.raises(InputError, match=r"was built with tensorrt 11\.4\.0, here is 10\.13\.0"):
        refit(engine, files()[1], tmp_path / "new.plan")


def test_a_machine_that_can_t_load_the_engine_lacks_a_component(engine, files, tmp_path, install_tensorrt):
    install_tensorrt("11", gpu=False)
    with pytest.raises(MissingComponentError, match="the engine can't be loaded on this machine: no GPU"):
        refit(engine, files()[1], tmp_path / "new.plan")


def test_a_weight_that_tensorrt_refuses_is_named(engine, files, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "vsfix.pipeline.backends.engine_refit._as_weights", lambda library, values: library.Weights(values[:1])
    )
    with pytest.raises(BuildError, match=r"refuses new weights 'w' \(4, 3, 3, 3\): Error Code 3: no weights w"):
        refit(engine, files()[1], tmp_path / "new.plan")
    assert not (tmp_path / "new.plan").exists()


@pytest.mark.parametrize("existing", ["new.plan", "new.plan.json"])
def test_an_output_that_exists_stays_without_force(engine, files, tmp_path, existing):
    (tmp_path / existing).write_text("mine")
    with pytest.raises(OutputExistsError):
        refit(engine, files()[1], tmp_path / "new.plan")
    assert (tmp_path / existing).read_text() == "mine"


def test_neither_input_is_an_output(engine, files):
    for path in (engine, files()[1]):
        with pytest.raises(InputError, match="is an input"):
            refit(engine, files()[1], path, force=True)


def test_a_version_that_drops_biases_builds_no_refittable_engine(install_tensorrt, files, tmp_path):
    install_tensorrt("11").__version__ = "11.3.0"
    with pytest.raises(InputError, match="may compute with a bias of 0"):
        build_refittable(files()[0], tmp_path / "e.plan")


def test_weights_that_tensorrt_does_not_know_can_t_be_marked(install_tensorrt, files, tmp_path, monkeypatch):
    install_tensorrt("11")
    monkeypatch.setattr(Network, "_mark", lambda network, name: False)
    with pytest.raises(BuildError, match="TensorRT knows no weights of the name 'w'"):
        build_refittable(files()[0], tmp_path / "e.plan")


def test_the_command_prints_what_was_set(call, engine, files, tmp_path):
    result = call("refit", engine, files()[1], "-o", tmp_path / "new.plan")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert result.stdout.splitlines() == [
        "weights: 4 new, 0 set again, 0 as they were",
        f"wrote {tmp_path / 'new.plan'}",
        f"wrote {tmp_path / 'new.plan.json'}",
    ]
    again = call("refit", engine, files()[1], "-o", tmp_path / "new.plan", "--force", "--json", "-")
    assert json.loads(again.stdout) == json.loads((tmp_path / "new.plan.json").read_text())


def test_the_refitted_engine_computes_what_the_repaired_model_does(machine, files, tmp_path):
    machine.install("10")
    original, repaired = files()
    build_refittable(original, tmp_path / "e.plan")
    refit(tmp_path / "e.plan", repaired, tmp_path / "new.plan")
    x = {"x": np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    found = {}
    for backend, path in (
        ("tensorrt", tmp_path / "new.plan"),
        *(("onnxruntime", path) for path in (repaired, original)),
    ):
        with open_runner(backend, path) as runner:
            found[path] = runner.run(x)["y"]
    np.testing.assert_allclose(found[tmp_path / "new.plan"], found[repaired], rtol=1e-4, atol=1e-4)
    assert np.abs(found[repaired] - found[original]).max() > 0.1
