"""The InferenceService, read by a YAML parser."""

from __future__ import annotations

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.serving.kserve import inference_service

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; run: pip install 'vsfix[test]'")


def test_the_resource_is_an_inference_service_that_triton_runs():
    found = yaml.safe_load(inference_service("net", "s3://models/repo", gpu=True))
    assert (found["apiVersion"], found["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert found["metadata"] == {"name": "net"}
    assert found["spec"]["predictor"]["model"] == {
        "modelFormat": {"name": "triton"},
        "protocolVersion": "v2",
        "runtime": "kserve-tritonserver",
        "storageUri": "s3://models/repo",
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }


def test_without_a_gpu_none_is_asked_for():
    assert (
        "resources"
        not in yaml.safe_load(inference_service("net", "pvc://claim/a", gpu=False))["spec"]["predictor"]["model"]
    )


@pytest.mark.parametrize(
    ("model", "service"),
    [("ResNet_20.fp16", "resnet-20-fp16"), ("20-net", "net"), ("a" * 80, "a" * 63), ("no", "no"), ("_x_", "x")],
)
def test_the_service_has_a_name_that_kubernetes_takes(model, service):
    assert yaml.safe_load(inference_service(model, "gs://b", gpu=False))["metadata"]["name"] == service


def test_every_uri_comes_back_as_it_was():
    uri = 's3://b/a:b#c"d\\e'
    assert yaml.safe_load(inference_service("n", uri, gpu=False))["spec"]["predictor"]["model"]["storageUri"] == uri


@pytest.mark.parametrize("uri", ["", "models/repo", "s3://", "s3://a b", "/mnt/models"])
def test_what_is_no_uri_is_refused(uri):
    with pytest.raises(InputError, match="name the folder of the repository as s3://"):
        inference_service("net", uri, gpu=False)


def test_a_name_without_letters_is_refused():
    with pytest.raises(InputError, match="no letter"):
        inference_service("20", "s3://b", gpu=False)
