from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import vsfix
from vsfix.graph_passes.ir.rounding import snr_db
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(5, 4)
        self.drop, self.bn = nn.Dropout(0.5), nn.BatchNorm1d(4)

    def forward(self, left: torch.Tensor, right: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        h = self.left(left) if right is None else self.left(left) + self.right(right)
        return self.bn(self.drop(h)), h


@pytest.fixture(scope="module")
def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Two().eval()


LEFT, RIGHT = (np.random.default_rng(seed).normal(size=(4, 3 + 2 * seed)).astype(np.float32) for seed in range(2))


@pytest.mark.parametrize(
    ("example", "names"),
    [
        (LEFT, ["input"]),
        ((torch.from_numpy(LEFT),), ["input"]),
        ((LEFT, RIGHT), ["left", "right"]),
        ([torch.from_numpy(LEFT), RIGHT], ["left", "right"]),
        ({"right": RIGHT, "left": torch.from_numpy(LEFT)}, ["right", "left"]),
    ],
)
def test_examples_come_alone_in_order_or_by_name(module, example, names):
    result = vsfix.export(module, example)
    assert list(result.inputs) == names
    arrays = {"input": LEFT, "left": LEFT, "right": RIGHT}
    found = OnnxRuntimeRunner(result.model).run({name: np.tile(arrays[name], (2, 1)) for name in names})
    with torch.no_grad():
        expected = module(*(torch.from_numpy(each).tile(2, 1) for each in (LEFT, RIGHT)[: len(names)]))
    for name, tensor in zip(("output_0", "output_1"), expected, strict=True):
        assert snr_db(tensor.numpy(), found[name]) > 120


def test_the_document_names_inputs_outputs_and_the_worst_of_these(module):
    result = vsfix.export(module, (LEFT, RIGHT), dynamic_shapes=({0: "rows"}, {0: "rows"}))
    document = json.loads(result.to_json())
    assert document["inputs"] == ["left", "right"]
    assert [each["output"] for each in document["outputs"]] == ["output_0", "output_1"]
    assert f"in output {min(result.outputs, key=lambda each: each.snr_db).output}" in document["verdict"]
    assert {side.dim_param for each in result.model.graph.input for side in each.type.tensor_type.shape.dim} == {
        "rows",
        "",
    }


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((Two(), "text"), {}, "example_inputs: give a batch of inputs"),
        ((Two(), np.array(["text"])), {}, "example_inputs: an array of <U4 is no tensor; give numbers"),
        ((Two(), (LEFT, 3)), {}, "example_inputs: give a batch of inputs"),
        ((Two(), LEFT), {"inputs": ["x:Nx3"]}, "weights, weights_key, inputs and input_shape go with a factory"),
        ((Two(), LEFT), {"mean": [0.5], "std": [1]}, "go with one input of images"),
        ((Two(), {"up": LEFT}), {}, "Two.forward: missing a required argument: 'left'; give an example of each"),
        (("a:b",), {"inputs": "x:Nx3", "dynamic_shapes": {}}, "example_inputs and dynamic_shapes go with a module"),
    ],
)
def test_what_does_not_go_together_is_one_line(arguments, options, words):
    with pytest.raises(vsfix.VsfixError, match=words) as error:
        vsfix.export(*arguments, **options)
    assert "\n" not in str(error.value)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).mean((2, 3))


PIXELS = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_one_number_normalises_every_channel_as_everywhere():
    one = vsfix.export(Images().eval(), PIXELS, mean=0.5, std=0.25, size=8)
    described = json.loads({each.key: each.value for each in one.model.metadata_props}["vsfix.preprocessing"])
    assert (described["mean"], described["std"], described["size"]) == ([0.5] * 3, [0.25] * 3, [8, 8])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, "divide mean and deviation by 255"),
        ({"mean": "0.5", "std": "0.5"}, "mean '0.5': give a number, or one for each channel"),
        ({"mean": 0.5, "std": 0.5, "size": (8, 8, 8)}, "give height and width in pixels"),
        ({"mean": 0.5, "std": 0.5, "class_names": "cat"}, "1 names for the 4 classes of output 'logits'"),
        ({"mean": 0.5, "std": 0.5, "class_names": ["cat", "dog"]}, "2 names for the 4 classes of output 'logits'"),
        ({"class_names": ["cat", "dog"]}, "mean and std: give both"),
    ],
)
def test_a_preprocessing_that_can_not_be_meant_is_no_part_of_a_file(options, words):
    with pytest.raises(vsfix.VsfixError, match=words) as error:
        vsfix.export(Images().eval(), PIXELS, **options)
    assert "\n" not in str(error.value)


def test_what_training_put_around_a_module_is_taken_off(module):
    expected = vsfix.export(module, (LEFT, RIGHT))
    for wrapped in (
        nn.DataParallel(module),
        AveragedModel(module),
        nn.DataParallel(torch.compile(module, backend="eager")),
    ):
        result = vsfix.export(wrapped, (LEFT, RIGHT))
        assert (result.markers, result.batch_norms, result.inputs) == (expected.markers, ("bn",), expected.inputs)
        assert vsfix.verify(result.model, wrapped, {"left": LEFT, "right": RIGHT}).status == "PASS"


def test_a_forward_that_does_another_thing_for_larger_batches_is_refused():
    class Switching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x if x.shape[0] > 6 else 3 * x

    with pytest.raises(vsfix.VsfixError, match="does another thing for more than 6 samples at once"):
        vsfix.export(Switching(), LEFT)


def test_a_forward_of_any_number_of_inputs_takes_them_in_order():
    class Sum(nn.Module):
        def forward(self, *terms: torch.Tensor) -> torch.Tensor:
            return terms[0] + 2 * terms[1]

    result = vsfix.export(Sum(), (LEFT, LEFT))
    assert result.inputs == ("input_0", "input_1")
    ones = np.ones((6, 3), np.float32)
    assert np.array_equal(OnnxRuntimeRunner(result.model).run({"input_0": ones, "input_1": ones})["logits"], 3 * ones)
    assert vsfix.verify(result.model, Sum()).status == "PASS"
