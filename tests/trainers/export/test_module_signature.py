"""Modules of several inputs and outputs: what the file calls them, and that it computes what torch does in any size."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vsfix.graph_passes.errors import CheckFailedError, InputError, ModelError
from vsfix.graph_passes.ir.rounding import snr_db
from vsfix.pipeline.backends.onnxruntime_runner import OnnxRuntimeRunner
from vsfix.trainers.export import onnx_export
from vsfix.trainers.export.example_inputs import example_inputs, given_inputs
from vsfix.trainers.export.module_signature import output_tensors
from vsfix.trainers.export.onnx_export import convert_module


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Mixed(nn.Module):
    """An image and numbers of words to scores and maps, with noise on the path of each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.words = nn.Embedding(50, 4)
        self.noise = nn.Dropout(0.25)
        self.head = nn.Linear(4, 5)

    def forward(self, image: torch.Tensor, ids: torch.Tensor, scale: float = 1.0) -> dict[str, object]:
        h = F.relu(self.drop(self.bn(self.conv(image))))
        pooled = h.mean((2, 3)) + self.noise(self.words(ids)).mean(1)
        return {"scores": scale * self.head(pooled), "maps": (h, h[:, :, ::2]), "loss": None, "classes": 5}


def run(model, feeds: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return OnnxRuntimeRunner(model).run({name: tensor.numpy() for name, tensor in feeds.items()})


@pytest.mark.parametrize("order", [("image", "ids"), ("ids", "image")])
def test_every_output_is_that_of_torch_in_sizes_that_were_never_tried(order):
    module = Mixed().eval()
    texts = {"image": "image:Nx3xHxW=16", "ids": "ids:NxT:int64:0..49"}
    model, result = convert_module(module, example_inputs(module, [texts[name] for name in order]))
    assert result.inputs == order
    sides = {each.name: each.type.tensor_type.shape.dim for each in model.graph.input}
    named = {name: [side.dim_param or side.dim_value for side in found] for name, found in sides.items()}
    assert named == {"image": ["N", 3, "H", "W"], "ids": ["N", "T"]}
    assert [each.output for each in result.outputs] == ["scores", "maps.0", "maps.1"]
    assert [name for name, _ in result.markers] == ["drop", "noise"]
    assert result.batch_norms == ("bn",)
    assert result.unmarked == ()
    feeds = {"image": torch.randn(3, 3, 9, 21), "ids": torch.randint(0, 50, (3, 5))}
    found = run(model, feeds)
    with torch.no_grad():
        expected = module(**feeds)
    for name, tensor in (
        ("scores", expected["scores"]),
        ("maps.0", expected["maps"][0]),
        ("maps.1", expected["maps"][1]),
    ):
        assert snr_db(tensor.numpy(), found[name]) > 120


def test_the_noise_of_every_output_is_marked():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.BatchNorm1d(6)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.one(x), F.dropout(self.two(x), 0.2, self.training)

    _, result = convert_module(Heads(), torch.randn(4, 4))
    assert [each.output for each in result.outputs] == ["output_0", "output_1"]
    assert [str(noise) for _, noise in result.markers] == ["dropout:0.3", "dropout:0.3", "dropout:0.2"]
    assert len(result.batch_norms) == 2


def test_a_tensor_that_is_an_output_twice_and_one_that_is_an_input_keep_their_names():
    class Repeating(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = x.relu()
            return {"once": y, "twice": y, "input": x}

    model, _ = convert_module(Repeating(), torch.randn(2, 3))
    x = torch.randn(5, 3)
    found = run(model, {"input": x})
    assert list(found) == ["once", "twice", "input_out"]
    assert all(np.array_equal(found[name], x.relu().numpy()) for name in ("once", "twice"))
    assert np.array_equal(found["input_out"], x.numpy())


Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: list[torch.Tensor]
    loss: torch.Tensor | None = None


A, B, C = torch.zeros(1), torch.ones(1), torch.ones(2)


@pytest.mark.parametrize(
    ("out", "names"),
    [
        (A, ["logits"]),
        ((A,), ["logits"]),
        ([[A]], ["logits"]),
        ({"scores": A}, ["scores"]),
        ((A, [B, C]), ["output_0", "output_1.0", "output_1.1"]),
        ({"a": A, "b": {"c": B}, "n": None, "k": 3}, ["a", "b.c"]),
        (Pair(A, B), ["left", "right"]),
        (Answer(A, [B, C]), ["logits", "hidden.0", "hidden.1"]),
        ({1: A, 2: B}, ["output_1", "output_2"]),
    ],
)
def test_outputs_have_the_names_that_the_module_gives_them(out, names):
    assert list(output_tensors(out, "Net")) == names


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["image:Nx3x8x8"], r"Mixed.forward takes image, ids, scale: the inputs image leave out ids"),
        (["a:Nx3x8x8", "b:NxT:int64", "c:N", "d:N"], r"4 inputs \(a, b, c, d\) do not fit"),
        (["words:Nx3x8x8", "image:NxT:int64"], r"'image' would be given to 'ids'; name all of them"),
        (["image:Nx3x8x8", "image:NxT:int64"], "'image': is given twice"),
        (["image:Nx3x8x8", "ids:BxT:int64"], r"the batch has several names \(B, N\)"),
        (["image:Nx3x8x8", "ids"], "write NAME:SHAPE"),
        (["image:Nx3x8xT=8", "ids:NxT=9:int64"], "the axis T has several sizes"),
        (["image:Nx3x8xmax", "ids:NxT:int64"], r"'' is no side; .*without the letter x"),
        (["image:Nx3x8x0", "ids:NxT:int64"], "'0' is no side"),
        (["image:Nx3x8x8", "ids:NxT:int8"], "no type 'int8'; there are float32"),
        (["image:Nx3x8x8", "ids:NxT:int64:9"], "'9' is no range; write the least and the largest, as 0..9"),
        (["image:Nx3x8x8", "ids:NxT:int64:9..3"], "'9..3' is no range"),
        (["image:Nx3x8x8", "ids:NxT:uint8:0..256"], "uint8 holds 0 to 255; write a range in it"),
        (["image:Nx3x8x8", "ids:NxT:int32:-2147483649..0"], "int32 holds -2147483648 to 2147483647"),
        (["image:Nx3x8x8", "ids:NxT:int64:0..9223372036854775807"], "int64 holds -9223372036854775808 to"),
        (["image:Nx3x8x8", f"ids:NxT:int64:0..{'9' * 400}"], "int64 holds -9223372036854775808 to"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_one_line(texts, words):
    with pytest.raises(InputError, match=words) as caught:
        example_inputs(Mixed(), texts)
    assert "\n" not in str(caught.value)


def test_inputs_of_other_names_are_given_in_order():
    module = Mixed().eval()
    model, result = convert_module(module, example_inputs(module, ["pixels:Nx3x8x8", "tokens:NxT:int64"]))
    assert result.inputs == ("pixels", "tokens")
    feeds = {"pixels": torch.randn(2, 3, 8, 8), "tokens": torch.randint(0, 50, (2, 3))}
    with torch.no_grad():
        expected = module(*feeds.values())["scores"].numpy()
    assert snr_db(expected, run(model, feeds)["scores"]) > 120


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("x:Nx64:int64", 0, 1), ("x:Nx64:uint8", 0, 255), ("x:Nx64:int32:3..9", 3, 9), ("x:Nx64:float32:-2..3", -2, 3)],
)
def test_the_values_of_an_example_lie_in_their_range(text, low, high):
    (x,) = example_inputs(nn.Identity(), [text]).tensors
    assert low <= x.min() <= x.max() <= high
    assert x.double().max() - x.double().min() > 0.9 * (high - low)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "int32", "uint8", "bool"])
def test_an_input_of_any_type_is_the_type_of_the_file(dtype):
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.float())

    module = Casting()
    model, _ = convert_module(module, example_inputs(module, [f"x:Nx3:{dtype}"]))
    x = torch.ones(5, 3).to(getattr(torch, dtype))
    with torch.no_grad():
        assert snr_db(module(x).numpy(), run(model, {"x": x})["logits"]) > 120


def test_numbers_are_fixed_sizes_of_the_batch_too():
    module = Mixed().eval()
    model, result = convert_module(module, example_inputs(module, ["image:1x3x8x8", "ids:1x4:int64"]))
    shapes = [[side.dim_value for side in each.type.tensor_type.shape.dim] for each in model.graph.input]
    assert shapes == [[1, 3, 8, 8], [1, 4]]
    assert [name for name, _ in result.markers] == ["drop", "noise"]  # although one sample is no batch to train on


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 3, 32).relu() if x.shape[2] == 32 else x.relu()


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_an_axis_that_is_not_free_is_named():
    with pytest.raises(InputError, match=r"the axis T is not free: .*write its size, 32, in the place of its name"):
        convert_module(OneSize(), example_inputs(OneSize(), ["x:Nx3xT"]))
    with pytest.raises(ModelError, match=r"its forward fixes the axis T; write x.shape\[2\] there"):
        convert_module(Fixed(), example_inputs(Fixed(), ["x:Nx3xT"]))


def test_the_worst_output_is_named_where_the_file_differs(monkeypatch):
    module = Mixed()
    inputs = example_inputs(module, ["image:Nx3x8x8", "ids:NxT:int64"])
    _, result = convert_module(module, inputs)
    assert result.snr_db == min(each.snr_db for each in result.outputs)
    assert result.worst_output in {"scores", "maps.0", "maps.1"}

    def wrong(*args):
        model = assemble(*args)
        tensor = next(each for each in model.graph.initializer if each.name == "head.bias")
        tensor.raw_data = np.ones(5, np.float32).tobytes()
        return model

    assemble = onnx_export._assemble
    monkeypatch.setattr(onnx_export, "_assemble", wrong)
    with pytest.raises(CheckFailedError, match="differs from torch in output 'scores': SNR"):
        convert_module(module, inputs)


def test_the_noise_of_a_second_output_counts_as_the_first_ones():
    """Noise that eval mode does not run reaches the second output in training mode; one output more does not count."""

    class Heads(nn.Module):
        def __init__(self, place: int) -> None:
            super().__init__()
            self.place = place
            self.head = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out = [x.relu(), x.neg()]
            if self.training:
                out.insert(self.place, self.head(x))
            return tuple(out)

    found = [convert_module(Heads(place), torch.randn(4, 4))[1].unmarked for place in (0, 1, 2)]
    assert [len(unmarked) for unmarked in found] == [1, 1, 0]


NESTED = ({"a": torch.randn(4, 3), "b": [torch.randn(4, 3), torch.randn(4, 3)]}, torch.randn(4, 3))


class Nested(nn.Module):
    def forward(self, tree: dict[str, object], x: torch.Tensor) -> torch.Tensor:
        return tree["a"] + 2 * tree["b"][0] + 3 * tree["b"][1] + 4 * x


@pytest.mark.parametrize(
    ("example", "names"),
    [
        (NESTED, ("tree.a", "tree.b.0", "tree.b.1", "x")),
        ({"x": NESTED[1], "tree": NESTED[0]}, ("x", "tree.a", "tree.b.0", "tree.b.1")),
    ],
)
def test_inputs_in_dicts_and_lists_are_named_by_their_path(example, names):
    model, result = convert_module(Nested(), given_inputs(Nested(), example))
    assert result.inputs == names
    values = dict(zip(names, (torch.full((2, 3), float(10**power)) for power in range(4)), strict=True))
    factors = {"tree.a": 1, "tree.b.0": 2, "tree.b.1": 3, "x": 4}
    expected = sum(factors[name] * value for name, value in values.items())
    assert np.array_equal(run(model, values)["logits"], expected.numpy())


@pytest.mark.parametrize(
    "shapes",
    [
        {"image": {0: "N", 2: "H", 3: "W"}, "ids": {0: "N", 1: "T"}},
        ({0: "N", 2: "H", 3: "W"}, {0: "N", 1: "T"}),
        {
            "image": {0: torch.export.Dim("N"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W"), 1: None},
            "ids": (torch.export.Dim("N"), torch.export.Dim("T")),
        },
    ],
)
def test_free_axes_are_those_of_torch_export(shapes):
    module = Mixed()
    inputs = given_inputs(module, (torch.randn(2, 3, 8, 8), torch.randint(0, 9, (2, 6))), shapes)
    assert inputs.axes == ({0: "N", 2: "H", 3: "W"}, {0: "N", 1: "T"})


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"pixels": {0: "N"}}, "there is no input 'pixels'; there are image, ids"),
        (({0: "N"},), "give the free axes of each input"),
        ({"image": {7: "N"}}, "no dict from an axis of"),
        ({"image": "N"}, "no dict from an axis of"),
    ],
)
def test_free_axes_that_are_none_are_refused(shapes, words):
    with pytest.raises(InputError, match=words):
        given_inputs(Mixed(), (torch.randn(2, 3, 8, 8), torch.randint(0, 9, (2, 6))), shapes)


def test_an_output_without_the_batch_is_named():
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"rows": x.relu(), "mean": x.mean(0), "turned": x.T}

    _, result = convert_module(Odd(), torch.randn(4, 3))
    assert result.unbatched == ("mean", "turned")
