"""Engines on the GPU, on fakes that compute; see `fake_cuda` and `fake_engine`."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import pytest

from tests.pipeline.tensorrt.fake_cuda import FakeCuda
from tests.pipeline.tensorrt.fake_engine import Context, Engine
from tests.pipeline.tensorrt.fake_machine import eighths, linear_model, model_of
from vsfix.graph_passes.errors import BuildError, DataError, ModelError
from vsfix.graph_passes.ir.runtime import Runner
from vsfix.graph_passes.measurement.tapped_tensors import tap_tensors
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner
from vsfix.pipeline.backends.opening import open_runner
from vsfix.pipeline.backends.tensorrt_runner import TensorRtRunner, open_built
from vsfix.pipeline.tensorrt.cuda import Stream, TensorBuffer, open_cuda
from vsfix.pipeline.tensorrt.library import open_library
from vsfix.pipeline.tensorrt.shape_profile import ShapeRange

BATCHES = (2, 2, 2, 4, 4, 4, 1, 4)


def inputs_of(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": eighths(size, 3, seed=seed)}


def open_plan(machine, plan, runtime="tensorrt", **settings) -> TensorRtRunner:
    return TensorRtRunner(open_library(runtime).load(plan), open_cuda(), **settings)


@pytest.mark.parametrize("use_graph", [False, True])
@pytest.mark.parametrize("version", ["8.6", "10", "11", "rtx"])
def test_every_version_computes_what_onnx_runtime_does(machine, version, use_graph):
    backend = machine.install(version)
    expected = OnnxRuntimeRunner(linear_model())
    with open_plan(machine, machine.plan(), backend, use_graph=use_graph) as found:
        runner: Runner = found
        assert runner.name == f"{backend} {machine.library.__version__} (sm89)"
        for seed, size in enumerate(BATCHES):
            outputs = runner.run(inputs_of(size, seed))
            assert list(outputs) == ["y", "s"]
            for name, output in expected.run(inputs_of(size, seed)).items():
                np.testing.assert_array_equal(outputs[name], output)


@pytest.mark.parametrize(
    ("owner", "what"), [(TensorBuffer, "upload"), (TensorBuffer, "download"), (Stream, "synchronize")]
)
def test_a_copy_or_a_wait_that_is_forgotten_is_seen(machine, monkeypatch, owner, what):
    machine.install()
    expected = OnnxRuntimeRunner(linear_model()).run(inputs_of(2))
    monkeypatch.setattr(owner, what, lambda *_: None)
    with open_plan(machine, machine.plan()) as runner:
        assert not np.allclose(runner.run(inputs_of(2))["y"], expected["y"], equal_nan=True)


def test_buffers_stay_where_they_are_while_the_shapes_do(machine):
    machine.install()
    counts = []
    with open_plan(machine, machine.plan()) as runner:
        for seed, size in enumerate(BATCHES):
            runner.run(inputs_of(size, seed))
            counts.append(machine.cuda.calls["cudaMalloc"])
            assert len(machine.cuda.device) == len(machine.cuda.pinned) == 3
    assert counts == [3, 3, 3, 6, 6, 6, 9, 12]


def test_a_graph_is_recorded_after_one_run_with_each_shape_and_replayed(machine):
    machine.install()
    launched, enqueued = [], []
    with open_plan(machine, machine.plan(), use_graph=True) as runner:
        for size in BATCHES:
            runner.run(inputs_of(size))
            launched.append(machine.cuda.calls["cudaGraphLaunch"])
            enqueued.append(machine.cuda.calls["execute_async_v3"])
    assert launched == [0, 1, 2, 2, 3, 4, 4, 4]
    assert enqueued == [1, 2, 2, 3, 4, 4, 5, 6]


def test_without_graphs_nothing_is_recorded(machine):
    machine.install()
    with open_plan(machine, machine.plan()) as runner:
        for size in BATCHES:
            runner.run(inputs_of(size))
    assert machine.cuda.calls["cudaGraphLaunch"] == 0


@pytest.mark.parametrize("use_graph", [False, True])
def test_everything_is_given_back_and_the_context_dies_before_its_engine(machine, use_graph):
    machine.install()
    with open_plan(machine, machine.plan(), use_graph=use_graph) as runner:
        for size in BATCHES:
            runner.run(inputs_of(size))
        assert machine.library.deaths == []
    gc.collect()
    assert machine.cuda.is_clean()
    assert machine.library.deaths == ["context", "engine", "runtime"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("float", np.float32), ("float16", np.float16), ("int32", np.int32), ("int64", np.int64)),
        *(("bool", np.bool_), ("int8", np.int8), ("uint8", np.uint8)),
    ],
)
def test_every_type_goes_in_and_comes_out_as_it_is(machine, name, dtype):
    machine.install()
    plan = machine.plan(model_of(f"({name}[N, 3] x) => ({name}[N, 3] y) {{ y = Identity (x) }}"))
    values = np.random.default_rng(1).integers(0, 2 if dtype is np.bool_ else 100, (3, 4)).astype(dtype).T
    assert not values.flags.c_contiguous
    with open_plan(machine, plan) as runner:
        output = runner.run({"x": values})["y"]
    assert output.dtype == dtype
    np.testing.assert_array_equal(output, values)


def test_an_output_belongs_to_the_caller(machine):
    machine.install()
    with open_plan(machine, machine.plan()) as runner:
        first = runner.run(inputs_of(2, 1))["y"]
        kept = first.copy()
        runner.run(inputs_of(2, 2))
    np.testing.assert_array_equal(first, kept)


def test_an_output_may_be_empty_or_a_single_number(machine):
    machine.install()
    body = "(float[2, 3] x) => (float e, float[0, 3] n) { e = ReduceSum <keepdims: int = 0> (x)\n n = Slice (x, z, z) }"
    plan = machine.plan(model_of(body, {"z": np.array([0])}), {})
    with open_plan(machine, plan) as runner:
        outputs = runner.run({"x": np.ones((2, 3), np.float32)})
    assert outputs["e"] == 6
    assert (outputs["e"].shape, outputs["n"].shape) == ((), (0, 3))


@pytest.mark.parametrize("size", [5, 100])
def test_a_shape_outside_the_profile_is_named_with_what_was_built(machine, size):
    machine.install()
    words = (
        rf"input 'x': \({size}, 3\) was given, .* profile of the engine goes from \(1, 3\) to \(4, 3\); give another"
    )
    with open_plan(machine, machine.plan()) as runner, pytest.raises(BuildError, match=words):
        runner.run(inputs_of(size))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "input 'x': is missing"),
        (inputs_of(2) | {"z": np.ones(1)}, "input 'z': the model has none of this name"),
        ({"x": np.ones((2, 3))}, r"takes float32 \(\?, 3\), but float64 \(2, 3\) was given"),
        ({"x": np.ones((2, 4), np.float32)}, r"float32 \(2, 4\) was given"),
        ({"x": np.ones((2, 3, 1), np.float32)}, r"float32 \(2, 3, 1\) was given"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_the_gpu_is_touched(machine, inputs, words):
    machine.install()
    with open_plan(machine, machine.plan()) as runner:
        with pytest.raises(DataError, match=words):
            runner.run(inputs)
        assert machine.cuda.calls["cudaMalloc"] == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"x": {"dtype": "BF16"}}, r"input 'x': the engine has it in BF16.* build it with float32"),
        ({"y": {"dtype": "FP8"}}, r"output 'y': the engine has it in FP8"),
        ({"x": {"shape_io": "yes"}}, "input 'x': holds a shape"),
        ({"s": {"location": "HOST"}}, "output 's': holds a shape"),
        ({"x": {"format": "CHW4"}}, "input 'x': lies in memory as CHW4"),
    ],
)
def test_an_input_or_output_that_can_not_be_handed_over_is_refused_when_opened(machine, odd, words):
    machine.install()
    with pytest.raises(ModelError, match=words):
        open_runner("tensorrt", machine.write(machine.plan(**odd)))
    gc.collect()
    assert machine.cuda.is_clean()
    assert machine.library.deaths == ["engine", "runtime"]


def test_an_output_whose_size_depends_on_the_values_is_an_error(machine):
    machine.install()
    plan = machine.plan(y={"size": "of the values"})
    with open_plan(machine, plan) as runner, pytest.raises(ModelError, match="output 'y': its size depends on the val"):
        runner.run(inputs_of(2))
    assert machine.cuda.is_clean()


def test_inputs_that_do_not_go_together_are_refused_in_tensorrts_words(machine):
    machine.install()
    model = model_of("(float[N] x, float[M] z) => (float[K] y) { y = Add (x, z) }")
    plan = machine.plan(model, {"x": ((1,), (2,), (4,)), "z": ((1,), (2,), (4,))})
    with (
        open_plan(machine, plan) as runner,
        pytest.raises(DataError, match=r"no shape for 'y' from .*broadcast dimensions must match"),
    ):
        runner.run({"x": np.ones(2, np.float32), "z": np.ones(3, np.float32)})


def test_a_batch_for_which_the_memory_does_not_suffice_says_so_and_a_smaller_one_runs(machine):
    machine.install(cuda=FakeCuda(room=2 * (3 + 5 + 1) * 4))
    with open_plan(machine, machine.plan()) as runner:
        with pytest.raises(
            DataError, match=r"the memory does not suffice \(CUDA error: out of memory\); give a smaller batch size"
        ):
            runner.run(inputs_of(4))
        expected = OnnxRuntimeRunner(linear_model()).run(inputs_of(2))
        np.testing.assert_allclose(runner.run(inputs_of(2))["y"], expected["y"], rtol=0, atol=1e-6)
    assert machine.cuda.is_clean()


def test_a_run_that_tensorrt_refuses_quotes_its_log(machine, monkeypatch):
    machine.install()

    def refuse(self, stream):
        machine.cuda.calls["refused"] += 1
        self._engine.log.log(0, f"Error Code 2: Internal Error\n(Assertion {machine.cuda.calls['refused']} failed)")
        return False

    monkeypatch.setattr(Context, "execute_async_v3", refuse)
    with open_plan(machine, machine.plan()) as runner:
        for count in (1, 2):
            words = rf"tensorrt 10\.13\.0 \(sm89\) fails on this input: .*Error \(Assertion {count} failed\)$"
            with pytest.raises(ModelError, match=words):
                runner.run(inputs_of(2))
    assert machine.cuda.is_clean()


def test_a_run_that_can_not_be_recorded_says_so_and_leaves_the_stream_usable(machine, monkeypatch):
    machine.install()
    with open_plan(machine, machine.plan(), use_graph=True) as runner:
        first = runner.run(inputs_of(2))
        with monkeypatch.context() as patched:
            patched.setattr(Context, "execute_async_v3", lambda *_: False)
            with pytest.raises(ModelError, match=r"does not go into a CUDA graph: .*; run it without"):
                runner.run(inputs_of(2))
        np.testing.assert_array_equal(runner.run(inputs_of(2))["y"], first["y"])
    assert machine.cuda.is_clean()


@pytest.mark.parametrize(("use_graph", "strategy"), [(False, "DISABLED"), (True, "WHOLE_GRAPH_CAPTURE")])
def test_tensorrt_rtx_keeps_graphs_of_its_own_and_final_kernels(machine, use_graph, strategy):
    machine.install("rtx")
    with open_plan(machine, machine.plan(), "tensorrt-rtx", use_graph=use_graph) as runner:
        for size in BATCHES:
            runner.run(inputs_of(size))
    assert machine.cuda.calls["cudaGraphLaunch"] == 0
    (config,) = machine.library.configs
    assert config.cuda_graph_strategy.name == strategy
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"


def test_an_engine_that_can_not_be_made_ready_says_why_and_leaves_nothing_behind(machine, monkeypatch):
    machine.install()

    def refuse(self):
        self.log.log(0, "Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)")

    monkeypatch.setattr(Engine, "create_execution_context", refuse)
    with pytest.raises(
        ModelError, match=r"e\.plan: tensorrt 10\.13\.0 can't make the engine ready to run: .*OutOfMemory"
    ):
        open_runner("tensorrt", machine.write(machine.plan()))
    gc.collect()
    assert machine.cuda.is_clean()
    assert machine.library.deaths == ["engine", "runtime"]


def test_what_vsfix_builds_it_runs(machine, call, tmp_path, monkeypatch):
    """From the command line to the numbers, on the same fakes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine.install("11")
    body = "(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { [conv] c = Conv (x, w, b)\n [relu] y = Relu (c) }"
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "b": np.ones(4, np.float32)}
    onnx.save(model_of(body, weights), tmp_path / "m.onnx")
    result = call("build", tmp_path / "m.onnx", "-o", tmp_path / "e.plan", "--shapes", "x:2x3x8x8")
    assert result.exit_code == 0, result.output
    x = {"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)}
    with open_runner("tensorrt", tmp_path / "e.plan") as runner, open_runner("onnxruntime", tmp_path / "m.onnx") as ort:
        np.testing.assert_allclose(runner.run(x)["y"], ort.run(x)["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_graph", [False, True])
def test_executions_are_timed_one_by_one_and_without_the_copies(machine, use_graph):
    machine.install()
    with open_plan(machine, machine.plan(), use_graph=use_graph) as runner:
        times = runner.time_executions(inputs_of(2), 5)
        np.testing.assert_array_equal(times, [0.25] * 5)  # what the fake takes for one execution
        assert machine.cuda.calls["execute_async_v3 done"] == 7
        assert machine.cuda.calls["cudaGraphLaunch"] == (6 if use_graph else 0)
    assert machine.cuda.is_clean()


@pytest.mark.parametrize("use_graph", [False, True])
def test_the_parts_of_a_run_are_timed_apart(machine, use_graph):
    machine.install()
    with open_plan(machine, machine.plan(), use_graph=use_graph) as runner:
        times = runner.time_phases(inputs_of(2), 3)
        tensors = len(inputs_of(2)), len(runner.run(inputs_of(2)))
        np.testing.assert_array_equal(times.upload, [0.0625 * tensors[0]] * 3)  # what the fake takes for a copy
        np.testing.assert_array_equal(times.compute, [0.25] * 3)
        np.testing.assert_array_equal(times.download, [0.125 * tensors[1]] * 3)
        assert (times.enqueue > 0).all()
    assert machine.cuda.is_clean()


def test_a_graph_is_built_and_run_without_a_file(machine):
    machine.install("10")
    model = model_of("(float[N, 3] x) => (float[N, 3] y) { h = Relu (x)  y = Relu (h) }")
    profile = {"x": ShapeRange((1, 3), (2, 3), (4, 3))}
    with open_built(tap_tensors(model, {"h"}), "tensorrt", profile) as runner:
        found = runner.run(inputs_of(2))
    assert list(found) == ["h", "y"]
    np.testing.assert_array_equal(found["h"], np.maximum(inputs_of(2)["x"], 0))
