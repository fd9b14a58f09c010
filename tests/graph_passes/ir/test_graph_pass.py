from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.graph_passes.ir.graph_pass import Change, PassPipeline, PassResult, Skipped


class Rename:
    name = "rename"

    def __call__(self, graph: gs.Graph) -> PassResult:
        graph.name = "renamed"
        return PassResult(self.name, (Change("graph", "renamed"),), (Skipped("node", "has no name"),))


class Fail:
    name = "fail"

    def __call__(self, graph: gs.Graph) -> PassResult:
        raise ModelError("no good")


def test_a_pipeline_is_a_pass_that_joins_the_results():
    pipeline = PassPipeline([Rename(), PassPipeline([Rename()])])
    result = pipeline(gs.Graph())
    assert result.pass_name == "rename -> rename"
    assert len(result.changed) == len(result.skipped) == 2
    assert [part.pass_name for part in pipeline.results] == ["rename", "rename"]


def test_a_failure_names_the_passes_that_ran_before_and_keeps_its_class():
    with pytest.raises(ModelError, match=r"fail: no good \(passes that ran before: rename\)") as caught:
        PassPipeline([Rename(), Fail()])(gs.Graph())
    assert isinstance(caught.value, InputError)
