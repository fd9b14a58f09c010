"""The calls of vsfix to each version of `tensorrt`, shown on a fake of it; see `fake_tensorrt`."""

from __future__ import annotations

import os
import signal

import numpy as np
import onnx
import pytest

from vsfix.graph_passes.errors import BuildError, MissingComponentError
from vsfix.pipeline.building.build_config import BuildConfig
from vsfix.pipeline.building.building import build_engine
from vsfix.pipeline.tensorrt.log import make_log, show_failure
from vsfix.pipeline.tensorrt.shape_profile import ShapeOptions

from .fake_tensorrt import members

VERSIONS = ("8.6", "10", "11")
GRAPH = """(FLOAT[N, 3, 8, 8] x) => (FLOAT[N, 4, 6, 6] y) {
    [conv] c = Conv (x, w, b)
    [relu] r = Relu (c)
    [norm] y = BatchNormalization (r, g, b, m, v)
}"""


@pytest.fixture
def files(parse, tmp_path):
    """One network in float32 and float16."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)), **{name: rng.uniform(0.5, 1.5, 4) for name in "bgmv"}}
    paths = {}
    for name, dtype in (("float", np.float32), ("float16", np.float16)):
        model = parse(GRAPH.replace("FLOAT", name), {key: value.astype(dtype) for key, value in weights.items()})
        paths[name] = tmp_path / f"{name}.onnx"
        onnx.save(model, paths[name])
    return paths


def build(path, **settings):
    config = BuildConfig(shapes=ShapeOptions("x:2x3x8x8", maximum="x:4x3x8x8"), **settings)
    return build_engine(path, path.with_suffix(".plan"), config, force=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "precision", "kind"), [("float", "fp32", "FLOAT"), ("float16", "fp16", "HALF")])
def test_every_version_computes_in_the_types_of_the_file(install_tensorrt, files, version, name, precision, kind):
    install_tensorrt(version)
    report = build(files[name], precision=precision)
    assert report.precision.source == "engine inspector"
    assert report.precision.engine == {layer: {kind: 1} for layer in ("Activation", "Convolution", "Scale")}
    assert report.precision.typing == ("flags" if version == "8.6" else "strong")
    assert report.read_back.count("PASS") == 4


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("precision", "on"), [(None, False), ("fp32", False), ("tf32", True)])
def test_tf32_is_pinned_on_or_off_and_never_left_to_the_default(install_tensorrt, files, version, precision, on):
    library = install_tensorrt(version)
    build(files["float"], precision=precision)
    ((_, config),) = library.builds
    assert config.get_flag(library.BuilderFlag.TF32) is on
    assert config.profiling_verbosity == library.ProfilingVerbosity.DETAILED


def test_strong_typing_is_asked_for_where_it_is_a_choice(install_tensorrt, files):
    library = install_tensorrt("10")
    build(files["float16"])
    ((network, config),) = library.builds
    assert network.flags == 1 << library.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert config.flags == set()


def test_a_version_without_a_flag_for_it_is_strongly_typed_all_the_same(install_tensorrt, files):
    library = install_tensorrt("11")
    library.NetworkDefinitionCreationFlag = members("NetworkDefinitionCreationFlag", "PREFER_AOT_PYTHON_PLUGINS")
    assert build(files["float16"]).precision.typing == "strong"
    ((network, _),) = library.builds
    assert network.flags == 0


def test_8_6_gets_flags_and_pins_and_does_without_cublas_and_cudnn(install_tensorrt, files):
    library = install_tensorrt("8.6")
    build(files["float16"])
    ((network, config),) = library.builds
    flags = library.BuilderFlag
    assert config.flags == {flags.FP16, flags.OBEY_PRECISION_CONSTRAINTS}
    assert {layer.pinned for layer in network.layers} == {"HALF"}
    named = {source.name for source in library.TacticSource if config.sources & 1 << source}
    assert named == {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"}


@pytest.mark.parametrize("version", VERSIONS)
def test_asked_for_fp16_and_got_fp32_is_an_error_and_leaves_no_file(install_tensorrt, files, version):
    install_tensorrt(version, computes_in="FLOAT")
    with pytest.raises(BuildError, match="is FLOAT, but the file holds only HALF"):
        build(files["float16"], precision="fp16")
    assert not files["float16"].with_suffix(".plan").exists()


def test_a_tf32_kernel_is_an_error_where_tf32_is_off(install_tensorrt, files):
    install_tensorrt("11", tactic="sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32")
    with pytest.raises(BuildError, match="'conv' of the engine runs a TF32 kernel"):
        build(files["float"])
    assert build(files["float"], precision="tf32").precision.tensor_float_layers == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_the_profile_and_the_workspace_reach_the_builder(install_tensorrt, files, version):
    library = install_tensorrt(version)
    build(files["float"], workspace=1 << 20)
    ((_, config),) = library.builds
    assert config.profiles[0].shapes == {"x": ((2, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
    assert config.limits == {"WORKSPACE": 1 << 20}


def test_timings_go_from_one_build_to_the_next(install_tensorrt, files, tmp_path):
    install_tensorrt("10")
    for count in (1, 2):
        report = build(files["float"])
        assert report.timing_cache == tmp_path / "cache" / "vsfix" / "tensorrt-10.13.0.timing"
        assert report.timing_cache.read_bytes() == b"timed;" * count


def test_timings_of_another_gpu_are_replaced(install_tensorrt, files, tmp_path):
    install_tensorrt("10")
    cache = tmp_path / "own.timing"
    cache.write_bytes(b"another GPU")
    build(files["float"], timing_cache=cache)
    assert cache.read_bytes() == b"timed;"


def test_without_a_gpu_the_component_is_missing(install_tensorrt, files):
    install_tensorrt("8.6", gpu=False)
    with pytest.raises(MissingComponentError, match=r"CUDA initialization failure.*nvidia-smi.*tensorrt-rtx"):
        build(files["float"])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_node_that_is_refused_is_named_by_every_version(install_tensorrt, parse, tmp_path, version):
    install_tensorrt(version)
    onnx.save(parse("(float[N, 3, 8, 8] x) => (float[N, 3] y) { [area] y = Det (x) }", {}), tmp_path / "m.onnx")
    with pytest.raises(BuildError, match="Det 'area': there is no Det in TensorRT"):
        build(tmp_path / "m.onnx")


@pytest.mark.parametrize("version", ["10", "11"])
def test_ctrl_c_ends_the_build_and_leaves_nothing(install_tensorrt, files, version):
    install_tensorrt(version, on_step=lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(files["float"])
    assert signal.getsignal(signal.SIGINT) is before
    assert not files["float"].with_suffix(".plan").exists()


def test_progress_is_told_and_a_bar_that_breaks_does_not_end_the_build(install_tensorrt, files):
    install_tensorrt("11", on_step=lambda: None)
    told = []

    class Bars:
        def start(self, phase, parent, steps):
            told.append((phase, parent, steps))

        def step(self, phase, done):
            told.append((phase, done))

        def finish(self, phase):
            raise RuntimeError("no terminal any more")

    config = BuildConfig(shapes=ShapeOptions("x:2x3x8x8"))
    build_engine(files["float"], files["float"].with_suffix(".plan"), config, progress=Bars())
    assert told == [("Building engine", None, 2), ("Building engine", 1), ("Building engine", 2)]


def test_of_a_long_log_the_errors_come_first_each_once_and_few(install_tensorrt, caplog):
    log = make_log(install_tensorrt("11"))
    severity = install_tensorrt("11").ILogger
    for number in range(4):
        log.log(severity.WARNING, f"warning {number}")
        log.log(severity.ERROR, f"error {number}\nin two lines")
        log.log(severity.ERROR, f"error {number}\nin two lines")
    caplog.clear()
    caplog.set_level("WARNING", "vsfix")
    show_failure(log, "trt")
    assert [record.getMessage() for record in caplog.records] == [
        *(f"trt: error {number} in two lines" for number in range(4)),
        *("trt: warning 0", "trt: warning 1", "trt: 2 more lines; -vv shows all of them"),
    ]
    log.forget()
    caplog.clear()
    show_failure(log, "trt")
    assert not caplog.records
