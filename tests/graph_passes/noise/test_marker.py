from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsfix.graph_passes.errors import ModelError
from vsfix.graph_passes.noise.marker import (
    has_open_ratio,
    is_switched_off,
    marker_label,
    marker_ratio,
    read_marker,
    write_marker,
)
from vsfix.graph_passes.noise.noise import UOUT_KINDS, Noise, NoiseKind

NOISES = st.builds(Noise, st.sampled_from(NoiseKind), st.floats(0.01, 0.99))


def marker(noise: Noise) -> gs.Node:
    return write_marker("layer1.drop", noise, gs.Variable("x", np.float32), gs.Variable("y", np.float32))


@given(NOISES)
def test_what_is_written_reads_back(noise):
    read = read_marker(marker(noise))
    assert read is not None
    assert read.kind is noise.kind
    # A plain Dropout keeps its ratio as a float32 initializer.
    assert read.value == pytest.approx(noise.value, rel=1e-7)


@given(NOISES)
def test_ratio_means_the_same_variance(noise):
    ratio = marker_ratio(noise)
    if noise.is_multiplicative:
        assert ratio / (1 - ratio) == pytest.approx(noise.variance, rel=1e-12)
    else:
        assert ratio == noise.value


def test_marker_is_a_switched_off_dropout_whose_label_has_no_tag():
    node = marker(Noise(NoiseKind.UOUT, 0.1))
    assert node.op == "Dropout"
    assert is_switched_off(node)
    assert marker_label(node) == "layer1.drop"


def test_dropout_of_old_opsets_is_read_from_its_attribute():
    node = gs.Node("Dropout", "d", {"ratio": 0.25}, [gs.Variable("x")], [gs.Variable("y")])
    assert read_marker(node) == Noise(NoiseKind.DROPOUT, 0.25)


def test_dropout_without_a_ratio_has_the_default_of_the_standard():
    node = gs.Node("Dropout", "d", inputs=[gs.Variable("x")], outputs=[gs.Variable("y")])
    assert read_marker(node) == Noise(NoiseKind.DROPOUT, 0.5)


def test_dropout_of_ratio_zero_is_no_noise():
    ratio = gs.Constant("r", np.array(0.0, dtype=np.float32))
    assert read_marker(gs.Node("Dropout", "d", inputs=[gs.Variable("x"), ratio], outputs=[gs.Variable("y")])) is None


@pytest.mark.parametrize("kind", [kind for kind in NoiseKind if kind not in UOUT_KINDS])
def test_any_kind_of_ratio_zero_is_no_noise(kind):
    assert read_marker(marker(Noise(kind, 0))) is None


@pytest.mark.parametrize("kind", NoiseKind)
def test_only_a_plain_dropout_goes_without_a_tag(kind):
    name = "layer1.drop" if kind is NoiseKind.DROPOUT else f"layer1.drop#vsfix.noise:{kind.value}=0.25"
    assert marker(Noise(kind, 0.25)).name == name


def test_other_nodes_are_no_markers():
    assert read_marker(gs.Node("Relu", "d#vsfix.noise:uout=0.1")) is None
    assert read_marker(gs.Node("Dropout", "d", domain="com.example")) is None


@pytest.mark.parametrize("name", ["d#vsfix.noise:uout=5", "d#vsfix.noise:fog=0.1"])
def test_a_tag_that_means_nothing_is_an_error(name):
    with pytest.raises(ModelError, match="noise tag"):
        read_marker(gs.Node("Dropout", name, inputs=[gs.Variable("x")], outputs=[gs.Variable("y")]))


def test_a_ratio_that_is_computed_has_no_effect_at_inference_and_is_an_error_in_training():
    ratio = gs.Variable("r")
    gs.Node("Sqrt", inputs=[gs.Variable("a")], outputs=[ratio])
    off = gs.Node("Dropout", "d", inputs=[gs.Variable("x"), ratio], outputs=[gs.Variable("y")])
    assert read_marker(off) is None
    assert has_open_ratio(off)
    on = gs.Constant("t", np.array(True))
    with pytest.raises(ModelError, match="computed by the graph"):
        read_marker(gs.Node("Dropout", "d", inputs=[gs.Variable("x"), ratio, on], outputs=[gs.Variable("y")]))
