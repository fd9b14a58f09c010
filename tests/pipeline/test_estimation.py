from __future__ import annotations

import re

import numpy as np
import pytest

from vsfix.graph_passes.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import ModelError
from vsfix.pipeline.estimation import estimate_statistics
from vsfix.pipeline.made_inputs import make_inputs
from vsfix.pipeline.preparation import prepare_model
from vsfix.pipeline.proxy_images import PROXY_SAMPLES, proxy_batch
from vsfix.pipeline.repair_config import RepairConfig

ALL = ["bn1", "bn2", "bn3"]


@pytest.mark.parametrize("method", ["exact", "paired"])
def test_each_method_with_data_says_what_it_rests_on(residual, images, open_model, method):
    prepared = prepare_model(residual)
    found = estimate_statistics(method, prepared, [{"x": images}], open_model, ALL, RepairConfig())
    assert set(found.methods.values()) == {method}
    assert found.data == "60 samples of the data"
    assert found.samples <= 60


@pytest.mark.parametrize("method", ["exact", "paired"])
def test_made_inputs_are_no_data_of_the_user(settled, open_model, method):
    prepared = prepare_model(settled)
    made = make_inputs(prepared, RepairConfig())
    found = estimate_statistics(method, prepared, made.batches, open_model, ALL, RepairConfig(), made)
    assert found.data == made.data
    assert re.fullmatch(r"no data of the user: \d+ synthetic inputs, made from the model", found.data)
    assert set(found.methods.values()) == {method}
    stored = find_batch_norms(prepared.graph)[0]
    assert (found.estimates["bn1"].variance < stored.variance).all()


def test_where_no_inputs_can_be_made_proxy_images_serve_and_that_is_said(residual):
    for node in residual.graph.node:
        if node.op_type == "GlobalAveragePool":
            node.op_type = "GlobalLpPool"  # no differentiable form
    made = make_inputs(prepare_model(residual), RepairConfig())
    assert made.are_proxy
    assert made.data == f"no data of the user: {PROXY_SAMPLES} proxy images"
    assert "handwritten digits took the place of the data" in made.warnings[0]
    assert sum(len(batch["x"]) for batch in made.batches) == PROXY_SAMPLES


def test_closed_forms_name_what_they_can_not_see(residual, open_model):
    found = estimate_statistics("analytic", prepare_model(residual), [], open_model, ALL, RepairConfig())
    assert found.methods == {"bn1": "analytic", "bn2": "analytic"}
    assert "say nothing of 1 BatchNorms" in found.warnings[0]
    assert found.data == "no data of the user: closed forms"


def test_stand_ins_have_the_shape_and_type_of_the_inputs(parse):
    body = "(float[N, 3, 12, 20] x, float16[N, 10] v) => (float[N, 3, 12, 20] y, float16[N, 10] w) { y = Abs (x)\n w = Abs (v) }"
    batch = proxy_batch(parse(body, {}), seed=0)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "x": ((PROXY_SAMPLES, 3, 12, 20), np.float32),
        "v": ((PROXY_SAMPLES, 10), np.float16),
    }
    assert abs(batch["x"].std() - 1) < 0.2


def test_an_input_that_no_image_can_stand_in_for_is_an_error(parse):
    with pytest.raises(ModelError, match="'x'"):
        proxy_batch(parse("(int64[N, 3] x) => (int64[N, 3] y) { y = Abs (x) }", {}), seed=0)
