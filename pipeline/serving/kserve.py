"""An InferenceService of KServe that serves a Triton model repository.

The resource: `serving.kserve.io/v1beta1`, https://kserve.github.io/website/docs/reference/crd-api. Texts are written as
in JSON, of which YAML is a superset.
"""

from __future__ import annotations

import json
import re

from vsfix.graph_passes.errors import InputError

RUNTIME = "kserve-tritonserver"  # the ClusterServingRuntime that KServe installs for Triton
_LONGEST_NAME = 63  # of a label in DNS


def inference_service(model: str, storage_uri: str, *, gpu: bool) -> str:
    """The YAML of an InferenceService.

    Args:
        model: the name of the model; the service is called after it, as far as Kubernetes allows.
        storage_uri: where the repository will stand, the folder that holds the model's folder: s3://, gs://, pvc://.
        gpu: whether it wants a GPU.

    Raises:
        InputError: no URI, or a name that leaves nothing to call the service.
    """
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S+", storage_uri):
        raise InputError(f"storage URI '{storage_uri}': name the folder of the repository as s3://bucket/folder")
    lines = [
        "apiVersion: serving.kserve.io/v1beta1",
        "kind: InferenceService",
        "metadata:",
        f"  name: {json.dumps(_service_name(model))}",
        "spec:",
        "  predictor:",
        "    model:",
        "      modelFormat:",
        "        name: triton",
        "      protocolVersion: v2",
        f"      runtime: {RUNTIME}",
        f"      storageUri: {json.dumps(storage_uri)}",
    ]
    if gpu:
        lines += ["      resources:", "        limits:", '          nvidia.com/gpu: "1"']
    return "\n".join(lines) + "\n"


def _service_name(model: str) -> str:
    """The name in lower-case letters, digits and dashes, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    name = re.sub(r"^[0-9-]+", "", name)[:_LONGEST_NAME].rstrip("-")
    if not name:
        raise InputError(f"name '{model}': holds no letter that a service could be called by; pass --name")
    return name
