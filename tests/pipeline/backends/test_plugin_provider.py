"""The plugin of ONNX Runtime: the package itself where it is installed, and a fake of its public functions.

The fake stands where the package and its GPU would: sessions run on the CPU's own `OrtEpDevice`, so that the way into
`SessionOptions.add_provider_for_devices` is ONNX Runtime's.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import onnx
import onnxruntime
import pytest
from onnx import helper

from vsfix.graph_passes.errors import MissingComponentError, ModelError
from vsfix.pipeline.backends.doctor import check_backends
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner
from vsfix.pipeline.backends.plugin_provider import TENSORRT_RTX, plugin_device, plugin_version
from vsfix.pipeline.tensorrt.cuda import visible_capability

PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
LIBRARY = "/plugins/libonnxruntime_providers_nv_tensorrt_rtx.so"


class Plugin:
    """What was asked of the fake: `registered` (name, library), `options` of the provider, `environment` of TF32."""

    def __init__(self) -> None:
        self.gpus, self.fails, self.taken = 1, "", [(TENSORRT_RTX, 9)]
        self.registered: list[tuple[str, str]] = []
        self.options: list[dict[str, str]] = []
        self.environment: list[str | None] = []


@pytest.fixture
def plugin(monkeypatch):
    found = Plugin()
    package = ModuleType(PACKAGE)
    package.get_ep_name, package.get_library_path = (lambda: TENSORRT_RTX), (lambda: LIBRARY)
    monkeypatch.setitem(sys.modules, PACKAGE, package)
    (cpu,) = [device for device in onnxruntime.get_ep_devices() if device.ep_name == "CPUExecutionProvider"]

    def register(name, library):
        if found.registered:
            raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : EP library is already registered under {name}")
        if found.fails:
            raise RuntimeError(found.fails)
        found.registered.append((name, library))

    def devices():
        gpus = [SimpleNamespace(ep_name=TENSORRT_RTX, number=number) for number in range(found.gpus)]
        return [cpu, *(gpus if found.registered else [])]

    class Options(onnxruntime.SessionOptions):
        def add_provider_for_devices(self, chosen, options):
            assert [device.number for device in chosen] == [0]
            found.options.append(options)
            super().add_provider_for_devices([cpu], {})

    class Session(onnxruntime.InferenceSession):
        def __init__(self, source, options, providers, **more):
            assert providers is None
            assert options.has_providers()
            found.environment.append(os.environ.get("NVIDIA_TF32_OVERRIDE"))
            super().__init__(source, options, providers=providers, **more)

        def get_providers(self):
            return [TENSORRT_RTX, *super().get_providers()]

        def run(self, *arguments):
            found.environment.append(os.environ.get("NVIDIA_TF32_OVERRIDE"))
            return super().run(*arguments)

        def get_provider_graph_assignment_info(self):
            return [SimpleNamespace(ep_name=name, get_nodes=lambda n=n: [None] * n) for name, n in found.taken]

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", devices)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return found


def test_a_session_runs_on_the_first_gpu_of_the_plugin_and_computes_what_the_cpu_does(plugin, residual, images):
    expected = onnxruntime.capi.onnxruntime_inference_collection.InferenceSession(
        residual.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"x": images})[0]
    plugin.gpus = 2
    with OnnxRuntimeRunner(residual, provider=TENSORRT_RTX) as runner:
        assert runner.name == "onnxruntime (NvTensorRTRTXExecutionProvider)"
        assert runner.run({"x": images})["y"].tobytes() == expected.tobytes()
    assert plugin.registered == [(TENSORRT_RTX, LIBRARY)]
    assert plugin.options == [{"enable_cuda_graph": "0", "nv_runtime_cache_path": ""}]


def test_the_library_is_registered_once_for_the_process(plugin, residual):
    for _ in range(2):
        OnnxRuntimeRunner(residual, provider=TENSORRT_RTX)
    assert len(plugin.registered) == 1


def test_a_library_that_the_caller_has_registered_is_used_and_one_without_a_gpu_is_not_registered_twice(plugin):
    plugin.registered.append((TENSORRT_RTX, "the caller's"))
    assert plugin_device(onnxruntime).number == 0
    plugin.gpus = 0
    with pytest.raises(MissingComponentError, match="finds no GPU"):
        plugin_device(onnxruntime)
    assert len(plugin.registered) == 1


@pytest.mark.parametrize("before", [None, "1"])
def test_tf32_stays_out_of_the_build_and_of_the_run(plugin, residual, images, monkeypatch, before):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    if before is not None:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", before)
    OnnxRuntimeRunner(residual, provider=TENSORRT_RTX).run({"x": images})
    assert plugin.environment == ["0", "0"]
    assert os.environ.get("NVIDIA_TF32_OVERRIDE") == before


def test_without_a_gpu_it_says_which_it_runs_on(plugin, residual):
    plugin.gpus = 0
    with pytest.raises(
        MissingComponentError, match=r"finds no GPU of compute capability 8\.6, 8\.9, or 12\.0"
    ) as caught:
        OnnxRuntimeRunner(residual, provider=TENSORRT_RTX)
    assert str(caught.value).endswith("; check with nvidia-smi")


def test_without_a_driver_the_library_that_is_missing_is_named(plugin, residual):
    plugin.fails = (
        "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /plugins/p.so with error: libcuda.so.1: cannot open "
        "shared object file: No such file or directory"
    )
    with pytest.raises(MissingComponentError, match=r"can't be loaded here \(libcuda\.so\.1: cannot open") as caught:
        OnnxRuntimeRunner(residual, provider=TENSORRT_RTX)
    assert "/plugins" not in str(caught.value)


def test_an_onnx_runtime_that_the_plugin_finds_too_old_is_replaced_and_no_driver_asked_for(plugin, residual):
    plugin.fails = (
        "[ONNXRuntimeError] : 1 : FAIL : [NvTensorRTRTX EP] Host ORT is too old. Minimum supported API version is 24, "
        'host reports "1.23.2" (parsed 23).'
    )
    with pytest.raises(
        MissingComponentError, match=r"does not take the plugin .* \(\[NvTensorRTRTX EP\] Host ORT"
    ) as caught:
        OnnxRuntimeRunner(residual, provider=TENSORRT_RTX)
    assert str(caught.value).endswith("; run: pip install 'vsfix[rtx-plugin]'")
    assert "driver" not in str(caught.value)


def test_without_the_package_the_line_that_installs_it_is_given(residual, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(MissingComponentError, match=r"not installed; run: pip install 'vsfix\[rtx-plugin\]'"):
        OnnxRuntimeRunner(residual, provider=TENSORRT_RTX)


def test_an_onnx_runtime_without_plugins_says_since_when_there_are_some(residual, monkeypatch):
    monkeypatch.delattr(onnxruntime, "register_execution_provider_library")
    with pytest.raises(MissingComponentError, match=r"takes no plugins, 1\.24 does; run: pip install"):
        OnnxRuntimeRunner(residual, provider=TENSORRT_RTX)


def test_a_plugin_that_takes_no_node_is_refused(plugin, residual):
    plugin.taken = [("CPUExecutionProvider", 9)]
    with pytest.raises(ModelError, match=r"can run no node of the model \(9 by CPUExecutionProvider\)"):
        OnnxRuntimeRunner(residual, provider=TENSORRT_RTX)


@pytest.mark.parametrize("in_a_file", [False, True])
def test_an_engine_in_a_model_is_not_loaded(plugin, residual, tmp_path, in_a_file):
    engine = helper.make_node("EPContext", ["x"], ["e"], "part", domain="com.microsoft", ep_cache_context=b"ftrt")
    residual.graph.node.insert(0, engine)
    onnx.save(residual, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="EPContext 'part' holds an engine"):
        OnnxRuntimeRunner(tmp_path / "m.onnx" if in_a_file else residual, provider=TENSORRT_RTX)
    assert not plugin.environment


def test_the_doctor_tells_a_missing_package_from_a_missing_gpu(plugin, monkeypatch):
    plugin.gpus = 0
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.plugin_version", lambda: "0.5.0")
    (check,) = check_backends(["onnxruntime-tensorrt-rtx"])
    assert (check.status, check.version, check.remedy) == (
        "SKIP",
        "0.5.0",
        "check the driver and the GPU with nvidia-smi",
    )
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.plugin_version", lambda: "")
    (check,) = check_backends(["onnxruntime-tensorrt-rtx"])
    assert (check.status, check.version, check.remedy) == ("SKIP", "", "pip install 'vsfix[rtx-plugin]'")


def test_the_doctor_passes_a_plugin_that_computes_right_numbers(plugin, monkeypatch):
    monkeypatch.setattr("vsfix.pipeline.backends.doctor.plugin_version", lambda: "0.5.0")
    (check,) = check_backends(["onnxruntime-tensorrt-rtx"])
    assert (check.status, check.version) == ("PASS", "0.5.0")


def test_the_package_itself_has_these_functions_and_names_this_provider():
    if find_spec(PACKAGE) is None:
        pytest.skip(f"{PACKAGE} is not installed; run: pip install 'vsfix[rtx-plugin]'")
    package = __import__(PACKAGE)
    assert package.get_ep_name() == TENSORRT_RTX
    assert os.path.isfile(package.get_library_path())
    assert plugin_version() == package.__version__


def test_the_package_itself_is_missing_a_gpu_and_not_itself(residual):
    if find_spec(PACKAGE) is None:
        pytest.skip(f"{PACKAGE} is not installed; run: pip install 'vsfix[rtx-plugin]'")
    if visible_capability() is not None:
        pytest.skip("there is a GPU here")
    with pytest.raises(MissingComponentError, match=r"check with nvidia-smi$"):
        OnnxRuntimeRunner(residual, provider=TENSORRT_RTX)
