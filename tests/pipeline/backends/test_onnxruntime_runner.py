from __future__ import annotations

import gc
import os
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from vsfix.graph_passes.errors import DataError, MissingComponentError, ModelError
from vsfix.graph_passes.io import external_data
from vsfix.graph_passes.ir.runtime import Runner
from vsfix.pipeline.backends import onnxruntime_runner
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner, open_for_small_runs
from vsfix.pipeline.backends.reference_runner import ReferenceRunner


def test_it_is_a_runner(residual):
    runner: Runner = OnnxRuntimeRunner(residual)
    assert runner.name == "onnxruntime (CPUExecutionProvider)"


def test_it_computes_what_the_reference_evaluator_does(residual, images):
    with OnnxRuntimeRunner(residual) as fast, ReferenceRunner(residual) as slow:
        np.testing.assert_allclose(fast.run({"x": images})["y"], slow.run({"x": images})["y"], rtol=0, atol=2e-5)


def test_a_changed_weight_is_seen(residual, images):
    changed = onnx.ModelProto.FromString(residual.SerializeToString())
    weight = changed.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
    outputs = [OnnxRuntimeRunner(model).run({"x": images})["y"] for model in (residual, changed)]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_the_same_input_gives_the_same_bits(residual, images):
    with OnnxRuntimeRunner(residual) as runner:
        first, second = (runner.run({"x": images})["y"] for _ in range(2))
    with OnnxRuntimeRunner(residual) as other:
        third = other.run({"x": images})["y"]
    assert first.tobytes() == second.tobytes() == third.tobytes()


def test_a_file_gives_the_same_bits_as_the_model_in_memory(residual, images, tmp_path):
    onnx.save(residual, tmp_path / "m.onnx")
    outputs = [OnnxRuntimeRunner(model).run({"x": images})["y"] for model in (residual, tmp_path / "m.onnx")]
    assert outputs[0].tobytes() == outputs[1].tobytes()


@pytest.mark.parametrize("open_model", [OnnxRuntimeRunner, open_for_small_runs])
def test_an_output_shares_its_memory_with_no_input_weight_or_other_run(parse, open_model):
    model = parse(
        "(float[N] x) => (float[N] y, float[4] c) { y = Identity (x)\n c = Identity (w) }",
        {"w": np.ones(4, np.float32)},
    )
    model.graph.output.extend(
        [model.graph.input[0], onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4])]
    )
    x = np.ones(4, np.float32)
    with open_model(model) as runner:
        outputs = runner.run({"x": x})
        again = runner.run({"x": x})
        x[:] = 7
        for output in again.values():
            output[:] = 5
        last = runner.run({"x": np.ones(4, np.float32)})
    del runner
    gc.collect()
    assert [output.tolist() for found in (outputs, last) for output in found.values()] == [[1.0] * 4] * 8


@pytest.mark.parametrize(("processors", "concurrency", "threads"), [(1, 1, 1), (2, 2, 1), (8, 8, 1), (40, 8, 5)])
def test_small_runs_share_the_processors_and_keep_no_arena(residual, monkeypatch, processors, concurrency, threads):
    seen = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, source, options, **kwargs):
            seen.append((options.intra_op_num_threads, options.enable_cpu_mem_arena))
            super().__init__(source, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime_runner, "available_processors", lambda: processors)
    assert open_for_small_runs(residual).concurrency == concurrency
    assert OnnxRuntimeRunner(residual).concurrency == 1
    assert seen == [(threads, False), (0, True)]


def test_nothing_is_cast(residual, images):
    with pytest.raises(DataError, match=r"input 'x': the model takes float32 \(\?, 3, 8, 8\), but float64"):
        OnnxRuntimeRunner(residual).run({"x": images.astype(np.float64)})


def test_a_model_that_states_no_shape_takes_any(parse):
    model = parse("(float[N] x) => (float[N] y) { y = Relu (x) }", {})
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert OnnxRuntimeRunner(model).run({"x": np.ones((2, 3), np.float32)})["y"].shape == (2, 3)


def test_a_failure_inside_the_model_is_one_line(parse):
    model = parse("(float[N] x, float[M] z) => (float[K] y) { y = Add (x, z) }", {})
    with pytest.raises(ModelError, match="fails on this input") as caught:
        OnnxRuntimeRunner(model).run({"x": np.ones(2, np.float32), "z": np.ones(3, np.float32)})
    assert "\n" not in str(caught.value)


def test_a_model_that_can_not_be_loaded_says_why_in_one_line(residual, capfd):
    residual.graph.node[0].op_type = "Convolution"
    with pytest.raises(ModelError, match="Convolution") as caught:
        OnnxRuntimeRunner(residual)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_model_is_named(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"text")
    with pytest.raises(ModelError, match=r"m\.onnx"):
        OnnxRuntimeRunner(path)


def test_a_provider_that_is_not_in_this_build_is_refused(residual, capfd):
    with pytest.raises(MissingComponentError, match=r"no CUDAExecutionProvider.*pip install 'vsfix\[gpu\]'"):
        OnnxRuntimeRunner(residual, provider="CUDAExecutionProvider")
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_falls_back_silently_is_refused(residual, monkeypatch):
    session = onnxruntime.InferenceSession

    def fall_back(source, options, providers, **more):
        return session(source, options, providers=["CPUExecutionProvider"], **more)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(MissingComponentError, match="CPUExecutionProvider took its place"):
        OnnxRuntimeRunner(residual, provider="CUDAExecutionProvider")


def test_without_onnx_runtime_the_line_that_installs_it_is_given(residual, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingComponentError, match=r"not installed; run: pip install 'vsfix\[cpu\]'"):
        OnnxRuntimeRunner(residual)


def test_a_model_past_the_limit_of_bytes_is_opened_with_its_weights_beside_it(residual, images, monkeypatch):
    in_memory = OnnxRuntimeRunner(residual).run({"x": images})["y"]
    before = residual.SerializeToString()
    monkeypatch.setattr(external_data, "MAX_SINGLE_FILE_WEIGHTS", 100)
    monkeypatch.setattr(external_data, "INLINE_BELOW", 16)
    with OnnxRuntimeRunner(residual) as runner:
        assert residual.SerializeToString() == before
        for tensor in residual.graph.initializer:
            tensor.raw_data = bytes(len(tensor.raw_data))
        gc.collect()  # the session holds the weights by itself
        np.testing.assert_allclose(runner.run({"x": images})["y"], in_memory, rtol=0, atol=1e-6)


def test_an_output_owns_its_memory(parse):
    """A view of ONNX Runtime's memory would keep the arena of a closed session alive."""
    model = parse("(float[N, 3] x) => (float[N, 3] y, float[N, 3] z) { y = Abs (x)\n z = Identity (x) }", {})
    x = np.ones((2, 3), np.float32)
    with OnnxRuntimeRunner(model) as runner:
        outputs = runner.run({"x": x})
    assert all(array.flags.owndata and not np.may_share_memory(array, x) for array in outputs.values())


GPU_PROVIDERS = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def gpu_build(monkeypatch):
    """A GPU build of ONNX Runtime: its sessions run on the CPU, and say what they are told of who took which node."""

    def put(taken):
        seen = []

        class Session(onnxruntime.InferenceSession):
            def __init__(self, source, options, providers, **more):
                seen.append((providers, options, os.environ.get("NVIDIA_TF32_OVERRIDE")))
                super().__init__(source, options, providers=["CPUExecutionProvider"], **more)
                self.given = [name for name, _ in providers]

            def get_providers(self):
                return [*self.given, "CPUExecutionProvider"]

            def run(self, *arguments):
                seen.append(os.environ.get("NVIDIA_TF32_OVERRIDE"))
                return super().run(*arguments)

            def get_provider_graph_assignment_info(self):
                return [SimpleNamespace(ep_name=name, get_nodes=lambda n=n: [None] * n) for name, n in taken]

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU_PROVIDERS)
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        return seen

    return put


def test_the_tensorrt_provider_comes_first_and_computes_in_the_types_of_the_file(residual, images, gpu_build):
    seen = gpu_build([("TensorrtExecutionProvider", 9)])
    with OnnxRuntimeRunner(residual, provider="TensorrtExecutionProvider") as runner:
        assert runner.name == "onnxruntime (TensorrtExecutionProvider)"
        runner.run({"x": images})
    (providers, options, _), _ = seen
    assert [name for name, _ in providers] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert providers[0][1] == {"trt_fp16_enable": "0", "trt_int8_enable": "0", "trt_engine_cache_enable": "0"}
    assert options.use_deterministic_compute


@pytest.mark.parametrize(
    ("kind", "dtype", "allowed"),
    [("float16", np.float16, {"trt_fp16_enable"}), ("bfloat16", ml_dtypes.bfloat16, {"trt_bf16_enable"})],
)
@pytest.mark.parametrize("in_a_file", [False, True])
def test_the_tensorrt_provider_may_use_a_type_only_where_the_file_does(
    parse, gpu_build, tmp_path, kind, dtype, allowed, in_a_file
):
    body = f"(float[N] x) => (float[N] y) {{ h = Cast <to: int = {10 if kind == 'float16' else 16}> (x)\n z = Cast <to: int = 1> (w)\n c = Cast <to: int = 1> (h)\n y = Add (c, z) }}"
    model = parse(body, {"w": np.ones(1, dtype)})
    onnx.save(model, tmp_path / "m.onnx")
    seen = gpu_build([("TensorrtExecutionProvider", 9)])
    OnnxRuntimeRunner(tmp_path / "m.onnx" if in_a_file else model, provider="TensorrtExecutionProvider")
    options = dict(seen[0][0])["TensorrtExecutionProvider"]
    assert {name for name, value in options.items() if value == "1"} == allowed


@pytest.mark.parametrize("provider", GPU_PROVIDERS[:2])
def test_convolutions_on_cuda_are_chosen_by_rule_and_without_tf32(residual, gpu_build, provider):
    seen = gpu_build([(provider, 9)])
    OnnxRuntimeRunner(residual, provider=provider)
    ((providers, _, _),) = seen
    assert dict(providers)["CUDAExecutionProvider"] == {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


@pytest.mark.parametrize("before", [None, "1"])
def test_tf32_stays_out_of_the_engines_of_the_tensorrt_provider(residual, images, gpu_build, monkeypatch, before):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    if before is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", before)
    seen = gpu_build([("TensorrtExecutionProvider", 9)])
    OnnxRuntimeRunner(residual, provider="TensorrtExecutionProvider").run({"x": images})
    assert [seen[0][2], seen[1]] == ["0", "0"]
    assert os.environ.get("NVIDIA_TF32_OVERRIDE") == before


@pytest.mark.parametrize("provider", GPU_PROVIDERS[:2])
def test_a_provider_that_takes_no_node_is_refused(residual, gpu_build, provider):
    gpu_build([("CPUExecutionProvider", 4), ("CPUExecutionProvider", 5)])
    with pytest.raises(ModelError, match=f"{provider} can run no node of the model .9 by CPUExecutionProvider"):
        OnnxRuntimeRunner(residual, provider=provider)


def test_what_another_provider_runs_is_told_in_the_log(residual, gpu_build, caplog):
    gpu_build([("TensorrtExecutionProvider", 7), ("CUDAExecutionProvider", 1), ("CUDAExecutionProvider", 1)])
    OnnxRuntimeRunner(residual, provider="TensorrtExecutionProvider")
    (record,) = caplog.records
    assert record.getMessage() == (
        "onnxruntime: 7 nodes are run by TensorrtExecutionProvider, 2 by CUDAExecutionProvider"
    )


def test_onnx_runtime_itself_says_who_took_which_node(residual):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(
        residual.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime is older than 1.24")
    parts = session.get_provider_graph_assignment_info()
    assert {part.ep_name for part in parts} == {"CPUExecutionProvider"}
    assert sum(len(part.get_nodes()) for part in parts) > 5


def test_without_the_tensorrt_provider_the_line_that_installs_it_is_given(residual):
    with pytest.raises(MissingComponentError, match=r"pip install 'vsfix\[gpu,tensorrt\]'"):
        OnnxRuntimeRunner(residual, provider="TensorrtExecutionProvider")


@pytest.mark.parametrize("in_a_file", [False, True])
@pytest.mark.parametrize("in_a_body", [False, True])
def test_an_engine_in_a_model_is_not_loaded(residual, gpu_build, tmp_path, in_a_file, in_a_body):
    engine = helper.make_node("EPContext", ["x"], ["e"], "part", domain="com.microsoft", ep_cache_context=b"ftrt")
    if in_a_body:
        body = helper.make_graph([engine], "body", [], [onnx.ValueInfoProto(name="e")])
        engine = helper.make_node("If", ["c"], ["e"], then_branch=body, else_branch=body)
    residual.graph.node.insert(0, engine)
    onnx.save(residual, tmp_path / "m.onnx")
    seen = gpu_build([("TensorrtExecutionProvider", 9)])
    with pytest.raises(ModelError, match="EPContext 'part' holds an engine"):
        OnnxRuntimeRunner(tmp_path / "m.onnx" if in_a_file else residual, provider="TensorrtExecutionProvider")
    assert not seen
