"""`config.pbtxt`, read by Triton's own message."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from vsfix.pipeline.serving.served_model import ServedModel, ServedTensor
from vsfix.pipeline.serving.triton_config import Batching, TritonConfig

from .model_config import parse_config, type_name

X, Y = ServedTensor("x", "FP32", (-1, 3, 8, 8)), ServedTensor("y", "FP16", (-1, 10))


def config(batching, device="auto", labels=None, **model):
    fields = {
        **{"is_engine": False, "files": {"model.onnx": Path("m.onnx")}, "capabilities": {}, "inputs": (X,)},
        **{
            "outputs": (Y,),
            "largest_batch": None,
            "usual_shapes": {"x": (1, 3, 8, 8)},
            "metadata": {},
            "provenance": {},
        },
    }
    return TritonConfig("net", ServedModel(**fields | model), batching, device, labels or {})


def parsed(*arguments, **model):
    return parse_config(config(*arguments, **model).to_text())


def test_a_field_or_a_value_that_triton_does_not_know_would_be_seen():
    text = config(Batching(8)).to_text()
    for right, wrong in (("max_batch_size", "maximum_batch_size"), ("TYPE_FP32", "FP32"), ("KIND_AUTO", "KIND_ANY")):
        assert right in text
        with pytest.raises(text_format.ParseError):
            parse_config(text.replace(right, wrong))


def test_with_a_batch_the_sides_stand_without_it():
    found = parsed(Batching(8))
    assert (found.name, found.backend, found.platform) == ("net", "onnxruntime", "onnxruntime_onnx")
    assert found.max_batch_size == 8
    assert [(t.name, type_name(t.data_type), list(t.dims)) for t in found.input] == [("x", "TYPE_FP32", [3, 8, 8])]
    assert [(t.name, type_name(t.data_type), list(t.dims)) for t in found.output] == [("y", "TYPE_FP16", [10])]


def test_without_a_batch_they_stand_whole_and_nothing_is_batched():
    found = parsed(Batching(0))
    assert (found.max_batch_size, list(found.input[0].dims)) == (0, [-1, 3, 8, 8])
    assert not found.HasField("dynamic_batching")
    (warm_up,) = found.model_warmup
    assert (warm_up.batch_size, list(warm_up.inputs["x"].dims)) == (1, [1, 3, 8, 8])


def test_engines_have_a_file_for_each_gpu_and_none_for_the_others():
    found = parsed(
        Batching(8), "gpu", is_engine=True, capabilities={"8.9": "model.plan.sm89", "12.0": "model.plan.sm120"}
    )
    assert (found.backend, found.platform) == ("tensorrt", "tensorrt_plan")
    assert dict(found.cc_model_filenames) == {"8.9": "model.plan.sm89", "12.0": "model.plan.sm120"}
    assert found.default_model_filename == ""
    assert "model.plan" not in found.cc_model_filenames.values()


@pytest.mark.parametrize(("device", "kind"), [("auto", 0), ("gpu", 1), ("cpu", 2)])
def test_one_instance_runs_where_it_was_asked_for(device, kind):
    (group,) = parsed(Batching(8), device).instance_group
    assert (group.count, group.kind) == (1, kind)


def test_requests_are_batched_as_it_was_asked_for():
    assert parsed(Batching(8)).HasField("dynamic_batching")
    assert parsed(Batching(8, 250)).dynamic_batching.max_queue_delay_microseconds == 250
    assert not parsed(Batching(1)).HasField("dynamic_batching")


def test_the_server_warms_up_with_one_sample_and_with_the_largest_batch():
    found = parsed(Batching(8)).model_warmup
    assert [(request.batch_size, list(request.inputs["x"].dims)) for request in found] == [
        (1, [3, 8, 8]),
        (8, [3, 8, 8]),
    ]
    assert all(request.inputs["x"].WhichOneof("input_data_type") == "random_data" for request in found)
    assert len(parsed(Batching(1)).model_warmup) == 1


def test_whole_numbers_are_warmed_up_with_zeros():
    tokens = ServedTensor("x", "INT64", (-1, 16))
    request = parsed(Batching(1), inputs=(tokens,), usual_shapes={"x": (1, 16)}).model_warmup[0]
    assert request.inputs["x"].WhichOneof("input_data_type") == "zero_data"


def test_sides_that_nothing_fixes_are_left_free_and_not_warmed_up():
    free = ServedTensor("x", "FP32", (-1, 3, -1, -1))
    found = parsed(Batching(8), inputs=(free,), usual_shapes={})
    assert list(found.input[0].dims) == [3, -1, -1]
    assert len(found.model_warmup) == 0


def test_a_tensor_without_sides_is_one_number_that_is_reshaped():
    scalar = ServedTensor("y", "FP32", (-1,))
    (output,) = parsed(Batching(8), outputs=(scalar,)).output
    assert (list(output.dims), output.HasField("reshape"), list(output.reshape.shape)) == ([1], True, [])


def test_an_output_names_the_file_of_its_classes():
    found = parsed(Batching(8), "auto", {"y": "labels.txt"})
    assert [output.label_filename for output in found.output] == ["labels.txt"]
