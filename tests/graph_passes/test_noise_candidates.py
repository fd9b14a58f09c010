"""The candidate places of small networks of each family, against lists written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vsfix.graph_passes.model_file import import_graph
from vsfix.graph_passes.noise_candidates import CandidatePlace, find_candidate_places

from .planted_network import BLOCKS, make_model, make_weights, site_tensors


@pytest.fixture
def places_of(parse):
    """The groups of a network in ONNX text with 4 channels, `BN` and `CONV` short for the operators with weights."""

    def find(body: str) -> dict[tuple[str, ...], CandidatePlace]:
        weights = {"w": np.ones((4, 4, 1, 1), np.float32), "v": np.ones((4, 4), np.float32)}
        weights |= {"k": np.ones((4, 8, 1, 1), np.float32), "e": np.ones(8, np.float32), "f": np.ones(12, np.float32)}
        weights |= {name: np.ones(4, np.float32) for name in ("scale", "shift", "mean", "var")}
        text = body.replace("BN(", "BatchNormalization (scale_of_").replace("CONV(", "Conv (w_of_")
        for name in ("scale_of_", "w_of_"):
            parts = text.split(name)
            tails = {"scale_of_": ", scale, shift, mean, var)", "w_of_": ", w)"}
            text = parts[0] + "".join(part.replace(")", tails[name], 1) for part in parts[1:])
        return {place.tensors: place for place in find_candidate_places(import_graph(parse(text, weights)))}

    return find


PRE_ACTIVATION = {
    tuple(site_tensors("a")): "in front of the BatchNorm that follows Conv, in each of 3 blocks",
    tuple(site_tensors("b")): "in front of the Conv that follows Conv -> BatchNorm -> Relu, in each of 3 blocks",
    ("d0", "d1", "d2"): "on the branch in front of the Add, behind Conv, in each of 3 blocks",
    ("x0", "x1", "x2"): "in front of the BatchNorm that follows Add, in each of 3 blocks",
    ("p0", "p1", "p2"): "in front of the Conv that follows Add -> BatchNorm -> Relu, in each of 3 blocks",
    ("x",): "in front of the Conv that reads the input, at one place",
    ("x3",): "in front of the BatchNorm that follows Add, at one place",
}


@pytest.fixture
def pre_activation():
    weights = make_weights(0)
    for name in [name for name in weights if name.startswith("bn") and name.endswith("bias")]:
        module = name.removesuffix(".bias")
        weights |= {f"{module}.running_mean": weights[name], f"{module}.running_var": weights[f"{module}.weight"]}
    return import_graph(make_model(weights))


def test_a_pre_activation_network_has_one_group_for_each_place_in_its_block(pre_activation):
    found = {place.tensors: place.description for place in find_candidate_places(pre_activation)}
    assert found == PRE_ACTIVATION


def test_what_a_place_reaches_is_what_lies_behind_it(pre_activation):
    reached = {place.tensors: place.reached for place in find_candidate_places(pre_activation)}
    every = {f"bn{i}{k}" for i in range(BLOCKS) for k in "12"} | {"bn"}
    assert reached[tuple(site_tensors("a"))] == every - {"bn01"}
    assert reached[tuple(site_tensors("b"))] == every - {"bn01", "bn02"}
    assert reached[("x3",)] == {"bn"}
    assert reached[("x",)] == every


def test_only_the_branch_in_front_of_an_add_is_a_branch(pre_activation):
    assert [place.tensors for place in find_candidate_places(pre_activation) if place.branch] == [("d0", "d1", "d2")]


BOTTLENECKS = """(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
    s = CONV(x)
    sn = BN(s)
    x0 = Relu (sn)
    a0 = CONV(x0)
    an0 = BN(a0)
    ar0 = Relu (an0)
    b0 = CONV(ar0)
    bn0 = BN(b0)
    br0 = Relu (bn0)
    c0 = CONV(br0)
    cn0 = BN(c0)
    d0 = CONV(x0)
    dn0 = BN(d0)
    y0 = Add (cn0, dn0)
    x1 = Relu (y0)
    a1 = CONV(x1)
    an1 = BN(a1)
    ar1 = Relu (an1)
    b1 = CONV(ar1)
    bn1 = BN(b1)
    br1 = Relu (bn1)
    c1 = CONV(br1)
    cn1 = BN(c1)
    y1 = Add (x1, cn1)
    y = Relu (y1)
}"""


def test_the_layers_of_a_bottleneck_are_told_apart_and_its_shortcut_is_left_out(places_of):
    found = places_of(BOTTLENECKS)
    assert {("a0", "a1"), ("b0", "b1"), ("c0", "c1"), ("ar0", "ar1"), ("br0", "br1")} <= set(found)
    assert not {tensor for tensors in found for tensor in tensors} & {"d0", "dn0"}
    texts = [place.description for place in found.values()]
    assert len(set(texts)) == len(texts)
    assert "2 layers before the end" in found["a0", "a1"].description
    assert found[("cn0",)].branch  # no BatchNorm lies behind the branch of the last block


DENSE = """(float[N, 4, 8, 8] x) => (float[N, 12, 8, 8] y) {
    x0 = CONV(x)
    a0 = BN(x0)
    b0 = Relu (a0)
    c0 = CONV(b0)
    x1 = Concat <axis: int = 1> (x0, c0)
    a1 = BatchNormalization (x1, e, e, e, e)
    b1 = Relu (a1)
    c1 = Conv (b1, k)
    x2 = Concat <axis: int = 1> (x1, c1)
    y = BatchNormalization (x2, f, f, f, f)
}"""


def test_the_layers_of_a_dense_block_are_its_blocks(places_of):
    found = places_of(DENSE)
    assert set(found) == {("x0", "x1"), ("b0", "b1"), ("c0", "c1"), ("x",), ("x2",)}
    assert found["c0", "c1"].description == "in front of the Concat that follows Conv, in each of 2 blocks"


PLAIN = """(float[N, 4] x) => (float[N, 4] y) {
    a0 = MatMul (x, v)
    b0 = Relu (a0)
    c0 = BN(b0)
    a1 = MatMul (c0, v)
    b1 = Relu (a1)
    c1 = BN(b1)
    y = MatMul (c1, v)
}"""


def test_a_plain_network_has_its_layers_as_blocks_and_nothing_in_front_of_the_classifier(places_of):
    found = places_of(PLAIN)
    assert set(found) == {("b0", "b1"), ("x",), ("c0",)}
    assert found["b0", "b1"].description == "in front of the BatchNorm that follows MatMul -> Relu, in each of 2 blocks"


RESHAPED = """(float[N, 4, 8, 8] x) => (float[N, 4] y) {
    a = CONV(x)
    an = BN(a)
    r = Relu (an)
    p = GlobalAveragePool (r)
    batch = Shape <start: int = 0, end: int = 1> (x)
    channels = Shape <start: int = 1, end: int = 2> (p)
    target = Concat <axis: int = 0> (batch, channels)
    flat = Reshape (p, target)
    b = MatMul (flat, v)
    y = BN(b)
}"""


def test_the_arithmetic_of_a_shape_is_no_place_for_noise(places_of):
    tensors = {tensor for names in places_of(RESHAPED) for tensor in names}
    assert tensors == {"x", "a", "flat", "b"}


def test_dropping_channels_is_another_noise_for_images_only(places_of, pre_activation):
    assert all(place.spatial for place in find_candidate_places(pre_activation))
    assert not any(place.spatial for place in places_of(PLAIN).values())


def test_two_places_together_are_one_hypothesis(pre_activation):
    first, second = find_candidate_places(pre_activation)[:2]
    both = first.united_with(second)
    assert both.tensors == first.tensors + second.tensors
    assert both.reached == first.reached | second.reached
    assert both.united_with(first).tensors == both.tensors
