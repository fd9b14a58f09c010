from __future__ import annotations

import re

import pytest

from vsfix.graph_passes.batch_norm.batch_norm import find_batch_norms
from vsfix.graph_passes.errors import ModelError
from vsfix.pipeline.inspection.preparation import prepare_model
from vsfix.pipeline.repair.estimation import estimate_statistics
from vsfix.pipeline.repair.made_inputs import make_inputs
from vsfix.pipeline.repair.repair_config import RepairConfig

ALL = ["bn1", "bn2", "bn3"]


@pytest.mark.parametrize("method", ["exact", "paired"])
def test_each_method_with_data_says_what_it_rests_on(residual, images, open_model, method):
    prepared = prepare_model(residual)
    found = estimate_statistics(method, prepared, [{"x": images}], open_model, ALL, RepairConfig())
    assert set(found.estimates) == set(ALL)
    assert found.data == "60 samples of the data"
    assert found.samples <= 60


@pytest.mark.parametrize("method", ["exact", "paired"])
def test_made_inputs_are_no_data_of_the_user(settled, open_model, method):
    prepared = prepare_model(settled)
    made = make_inputs(prepared, RepairConfig())
    found = estimate_statistics(method, prepared, made.batches, open_model, ALL, RepairConfig(), made)
    assert found.data == made.data
    assert re.fullmatch(r"no data of the user: \d+ synthetic inputs, made from the model", found.data)
    stored = find_batch_norms(prepared.graph)[0]
    assert (found.estimates["bn1"].variance < stored.variance).all()


def test_where_no_inputs_can_be_made_data_is_asked_for(residual):
    for node in residual.graph.node:
        if node.op_type == "GlobalAveragePool":
            node.op_type = "GlobalLpPool"  # no differentiable form
    with pytest.raises(ModelError, match=r"no inputs can be made from the model \(.*GlobalLpPool.*\): give --data"):
        make_inputs(prepare_model(residual), RepairConfig())


def test_closed_forms_name_what_they_can_not_see(residual, open_model):
    found = estimate_statistics("analytic", prepare_model(residual), [], open_model, ALL, RepairConfig())
    assert set(found.estimates) == {"bn1", "bn2"}
    assert "say nothing of 1 BatchNorms" in found.warnings[0]
    assert found.data == "no data of the user: closed forms"
