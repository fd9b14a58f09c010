from __future__ import annotations

from dataclasses import replace

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.benchmark.variant import plan_variants
from vsfix.pipeline.verification.model_description import describe_model


@pytest.fixture(scope="session")
def models(checkpoint_path, onnx_path):
    return [describe_model(checkpoint_path), describe_model(onnx_path)]


def rows(variants):
    return [(variant.model.kind, variant.backend, variant.precision) for variant in variants]


def test_without_a_word_each_model_runs_as_it_is_where_its_kind_does(models):
    assert rows(plan_variants(models, (), ())) == [("checkpoint", "torch", "fp32"), ("onnx", "onnxruntime", "fp32")]


def test_every_model_meets_each_backend_and_precision_that_fit(models):
    found = plan_variants(models, ("reference", "torch", "onnxruntime"), ("fp32", "fp16"))
    assert rows(found) == [
        ("checkpoint", "torch", "fp32"),
        ("onnx", "reference", "fp32"),
        ("onnx", "reference", "fp16"),
        ("onnx", "onnxruntime", "fp32"),
        ("onnx", "onnxruntime", "fp16"),
    ]


def test_an_engine_is_built_of_an_onnx_file_and_only_it_knows_tf32(models):
    found = plan_variants(models[1:], ("onnxruntime", "tensorrt"), ("fp32", "tf32"))
    assert [(row.backend, row.precision, row.is_built) for row in found] == [
        ("onnxruntime", "fp32", False),
        ("tensorrt", "fp32", True),
        ("tensorrt", "tf32", True),
    ]


def test_a_file_in_another_precision_stays_in_it(models):
    half = replace(models[1], precision="fp16")
    assert rows(plan_variants([models[1], half], (), ("fp32", "int8"))) == [
        ("onnx", "onnxruntime", "fp32"),
        ("onnx", "onnxruntime", "int8"),
        ("onnx", "onnxruntime", "fp16"),
    ]


@pytest.mark.parametrize(
    ("backends", "precisions", "words"),
    [
        (("torch",), (), "none of the backends torch runs it; add --backend onnxruntime"),
        (("torch", "onnxruntime", "tensorrt-x"), (), "--backend tensorrt-x: unknown"),
        ((), ("fp31",), "--precision fp31: unknown"),
        ((), ("tf32",), "--precision tf32: casts ONNX files in fp32"),
    ],
)
def test_what_leads_to_no_row_is_refused(models, backends, precisions, words):
    with pytest.raises(InputError, match=words):
        plan_variants(models, backends, precisions)
