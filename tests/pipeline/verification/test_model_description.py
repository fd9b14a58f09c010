from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner
from vsfix.pipeline.casting.casting import cast_model
from vsfix.pipeline.inspection.preparation import repaired_batch_norms
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.pipeline.verification.model_description import describe_model, name_step

QUANTIZED = """<ir_version: 9, opset_import: ["" : 19]>
main (float[N, 3] x) => (float[N, 3] y) {
    q = QuantizeLinear (x, scale, zero)
    y = DequantizeLinear (q, scale, zero)
}"""


@pytest.fixture
def described(onnx_path):
    return describe_model(onnx_path)


def test_a_checkpoint_and_its_export_say_the_same_of_their_input(checkpoint_path, described):
    checkpoint = describe_model(checkpoint_path.parent)
    assert (checkpoint.kind, checkpoint.backend, checkpoint.input_names) == ("checkpoint", "torch", ())
    assert (described.kind, described.backend, described.input_names) == ("onnx", "onnxruntime", ("input",))
    assert checkpoint.names == described.names
    assert checkpoint.input_shapes == described.input_shapes == ((1, 8, 8),)
    assert checkpoint.preprocessing == described.preprocessing
    assert name_step(checkpoint, described) == "export"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_precision_is_the_one_that_the_graph_computes_in(onnx_path, described, tmp_path, precision):
    onnx.save(cast_model(onnx.load(onnx_path), precision, {}, OnnxRuntimeRunner).model, tmp_path / "cast.onnx")
    cast = describe_model(tmp_path / "cast.onnx")
    assert (described.precision, cast.precision) == ("fp32", precision)
    assert name_step(described, cast) == "cast"
    assert cast.backend == ("reference" if precision == "bf16" else "onnxruntime")


@pytest.mark.parametrize(
    ("zero", "precision"), [(onnx.TensorProto.INT8, "int8"), (onnx.TensorProto.FLOAT8E4M3FN, "fp8")]
)
def test_a_graph_with_quantisers_is_quantised(described, tmp_path, zero, precision):
    model = onnx.parser.parse_model(QUANTIZED)
    model.graph.initializer.extend(
        [
            onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [0.5]),
            onnx.helper.make_tensor("zero", zero, [], [0]),
        ]
    )
    onnx.save(model, tmp_path / "quantised.onnx")
    found = describe_model(tmp_path / "quantised.onnx")
    assert found.precision == precision
    assert name_step(described, found) == "quantisation"


def test_the_same_file_twice_is_a_step_of_the_runtime(described):
    assert name_step(described, described) == "runtime"
    assert name_step(described, replace(described, digest="other", repaired=True)) == "repair"
    assert name_step(described, replace(described, digest="other")) == "another model"


def test_a_cast_of_a_damaged_file_is_not_called_repaired_and_a_cast_of_a_repaired_one_is(onnx_path, tmp_path):
    def repaired(source, *steps):
        for method, precision in steps:
            batches = [{"input": np.random.default_rng(0).normal(size=(32, 1, 8, 8)).astype(np.float32)}]
            config = RepairConfig(method=method, precision=precision)
            source = repair_model(source, batches, OnnxRuntimeRunner, config).model
        onnx.save(source, tmp_path / "out.onnx")
        return describe_model(tmp_path / "out.onnx").repaired

    model = onnx.load(onnx_path)
    assert not repaired(model, ("none", "fp16"))
    assert repaired(model, ("exact", None))
    assert repaired(model, ("exact", None), ("none", "fp16"))


@pytest.mark.parametrize("text", ["", "yes", "[]", "{}", '{"repaired": "all"}', '{"repaired": []}', "[" * 100000])
def test_an_entry_that_names_no_repaired_batch_norm_is_no_repair(text):
    assert repaired_batch_norms({"vsfix.repair": text}) == repaired_batch_norms({}) == ()


def test_a_model_without_input_is_refused(parse, tmp_path):
    onnx.save(parse("() => (float[1] y) { y = Constant <value_floats = [1.0]> () }", {}), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="has no input"):
        describe_model(tmp_path / "m.onnx")
