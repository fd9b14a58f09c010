from __future__ import annotations

import json

import pytest

from vsfix.graph_passes.errors import BuildError
from vsfix.pipeline.tensorrt.engine_layers import (
    EngineLayer,
    ParsedLayer,
    check_precision,
    count_tensor_float,
    count_types,
    read_inspection,
)


def parsed(kind: str, *types: str) -> ParsedLayer:
    return ParsedLayer(kind.lower(), "", kind, types, dict)


def inspection(**tensor: str) -> str:
    return json.dumps(
        {"Layers": [{"Name": "a", "LayerType": "CaskConvolution", "Outputs": [tensor], "TacticName": "t"}]}
    )


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ({"Format/Datatype": "Row major linear FP32"}, ("FLOAT",)),
        ({"Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}, ("HALF",)),
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}, ("INT8",)),
        ({"Format/Datatype": "Half"}, ("HALF",)),
        ({"DataType": "BFloat16", "Format": "Row major linear format (kLINEAR)"}, ("BF16",)),
        ({"DataType": "Float", "Format": "Two wide FP16"}, ("FLOAT",)),
        ({"Format/Datatype": "N/A due to dynamic shapes"}, ()),
    ],
)
def test_types_are_read_from_the_forms_of_every_version(tensor, kind):
    assert read_inspection(inspection(**tensor)) == (EngineLayer("a", "CaskConvolution", kind, "t"),)


@pytest.mark.parametrize(("text", "words"), [("nothing", "JSON"), ('{"Layers": ["conv"]}', "names of its layers only")])
def test_an_inspector_without_details_is_an_error(text, words):
    with pytest.raises(BuildError, match=words):
        read_inspection(text)


def test_an_engine_in_the_types_of_the_file_passes():
    network = [parsed("CONVOLUTION", "HALF"), parsed("CAST", "FLOAT")]
    check_precision(
        network, [EngineLayer("c", "Conv", ("HALF",)), EngineLayer("r", "Reformat", ("FLOAT",))], tensor_float=False
    )


@pytest.mark.parametrize(
    ("network", "engine", "words"),
    [
        ([("CONVOLUTION", "FLOAT")], [("Conv", "HALF")], "is HALF, but the file holds only FLOAT"),
        (
            [("CONVOLUTION", "HALF"), ("CAST", "FLOAT")],
            [("Conv", "FLOAT")],
            "asks for HALF, but the engine computes in FLOAT alone",
        ),
        (
            [("QUANTIZE", "INT8"), ("CONVOLUTION", "FLOAT")],
            [("Conv", "FLOAT")],
            "no layer of the engine gives a quantised",
        ),
    ],
)
def test_an_engine_in_other_types_fails(network, engine, words):
    layers = [EngineLayer("c", kind, (dtype,)) for kind, dtype in engine]
    with pytest.raises(BuildError, match=words):
        check_precision([parsed(*row) for row in network], layers, tensor_float=False)


def test_kernels_that_round_to_tf32_are_counted():
    layers = [EngineLayer("a", "Conv", (), "sm80_gemm_tf32f32"), EngineLayer("b", "Conv", (), "sm80_gemm_f32")]
    assert count_tensor_float(layers) == 1


def test_layers_are_counted_by_kind_and_type():
    layers = [parsed("CONVOLUTION", "HALF"), parsed("CONVOLUTION", "HALF"), parsed("CAST", "FLOAT"), parsed("X")]
    assert count_types(layers) == {"CAST": {"FLOAT": 1}, "CONVOLUTION": {"HALF": 2}, "X": {"unknown": 1}}
