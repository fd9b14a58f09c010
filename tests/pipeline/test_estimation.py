from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from vsfix.graph_passes.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import ModelError
from vsfix.pipeline.estimation import estimate_statistics
from vsfix.pipeline.preparation import prepare_model
from vsfix.pipeline.proxy_images import PROXY_SAMPLES, proxy_batch
from vsfix.pipeline.repair_config import RepairConfig

ALL = ["bn1", "bn2", "bn3"]


@pytest.mark.parametrize("method", ["exact", "stream", "paired"])
def test_each_method_with_data_says_what_it_rests_on(residual, images, open_model, method):
    prepared = prepare_model(residual)
    found = estimate_statistics(method, prepared, [{"x": images}], open_model, ALL, RepairConfig())
    assert set(found.methods.values()) == {method}
    assert found.data == "60 samples of the data"
    assert found.samples <= 60


def test_distilled_inputs_are_no_data_of_the_user(residual, open_model):
    pytest.importorskip("torch")
    prepared = prepare_model(residual)
    found = estimate_statistics("distill", prepared, [], open_model, ALL, RepairConfig())
    assert found.data.startswith("no data of the user")
    assert set(found.methods.values()) == {"distill"}
    stored = find_batch_norms(prepared.graph)[0]
    assert (found.estimates["bn1"].variance < stored.variance).all()


def test_a_search_that_the_clock_cut_short_is_told(residual, open_model, monkeypatch):
    distillation = pytest.importorskip("vsfix.trainers.distillation")
    config = partial(distillation.DistillationConfig, time_limit=1e-9)
    monkeypatch.setattr(distillation, "DistillationConfig", config)
    found = estimate_statistics("distill", prepare_model(residual), [], open_model, ALL, RepairConfig())
    assert any("cut short after 0 s, in step 1 of" in warning for warning in found.warnings)


def test_where_nothing_can_be_distilled_stand_ins_and_closed_forms_serve_and_say_so(residual, open_model):
    for node in residual.graph.node:
        if node.name == "" and node.op_type == "GlobalAveragePool":
            node.op_type = "GlobalLpPool"  # no differentiable form
    found = estimate_statistics("distill", prepare_model(residual), [], open_model, ALL, RepairConfig())
    assert found.methods == {"bn1": "analytic", "bn2": "paired on stand-ins", "bn3": "paired on stand-ins"}
    assert "stood in" in found.warnings[0]
    assert "stand-in images" in found.data


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
