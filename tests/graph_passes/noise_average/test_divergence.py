"""D against numpy in float64, and how outputs are recognised."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.graph_passes.noise_average.divergence import Meaning, NoisyOutputs, OutputKind, recognise_outputs

RNG = np.random.default_rng(8)
VALUES = OutputKind(Meaning.VALUES, "values", -1, "")
CLASSES = OutputKind(Meaning.CLASSES, "probabilities", -1, "")
DIRECTIONS = OutputKind(Meaning.DIRECTIONS, "directions", -1, "")
SINGLE = OutputKind(Meaning.PROBABILITIES, "probabilities", -1, "")


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)


def noisy_probabilities(kind: OutputKind, draws: int, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws and their true mean: a mixture of 64 vectors for each sample, one taken at random."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(0, 1, (64, samples, 4))
    vectors = softmax(vectors) if kind is CLASSES else vectors if kind is VALUES else 1 / (1 + np.exp(-vectors))
    return vectors[rng.integers(0, 64, (draws, samples)), np.arange(samples)], vectors.mean(axis=0)


@pytest.mark.parametrize("kind", [VALUES, CLASSES, SINGLE])
def test_the_distance_of_f_itself_is_0_in_the_mean(kind):
    draws, truth = noisy_probabilities(kind, 8, 4000, 1)
    noisy = NoisyOutputs(kind, draws)
    found = noisy.distance(truth)
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(4000)
    assert abs(found.mean()) < 0.01 * noisy.noise_distance().mean()
    plugged_in = NoisyOutputs(kind, np.repeat(noisy.mean[None], 2, axis=0)).distance(truth)  # F from the mean alone
    assert plugged_in.mean() > 4 * found.std() / np.sqrt(4000), "the bias that the halves take out must be seen"


@pytest.mark.parametrize("kind", [CLASSES, SINGLE])
def test_one_draw_is_as_far_as_numpy_says(kind):
    draws, truth = noisy_probabilities(kind, 16, 3000, 2)
    pairs = (
        [(truth, draws)] if kind is CLASSES else [(np.stack([truth, 1 - truth], -1), np.stack([draws, 1 - draws], -1))]
    )
    (p, q) = pairs[0]
    distances = kl(p, q)
    expected = distances.mean() if kind is CLASSES else distances.mean(axis=-1).mean()
    assert NoisyOutputs(kind, draws).noise_distance().mean() == pytest.approx(expected, rel=0.03)


def test_one_draw_of_values_is_1():
    draws, _ = noisy_probabilities(VALUES, 8, 500, 3)
    assert NoisyOutputs(VALUES, draws).noise_distance().mean() == pytest.approx(1, rel=1e-12)
    assert NoisyOutputs(VALUES, draws).noise_distance(unit=2.0).mean() == pytest.approx(
        draws.var(axis=0, ddof=1).mean() / 2
    )


def test_a_shifted_output_is_as_far_as_the_shift():
    draws, truth = noisy_probabilities(VALUES, 8, 4000, 4)
    noisy = NoisyOutputs(VALUES, draws)
    shifted = noisy.distance(truth + 0.7, unit=1.0).mean()
    assert shifted == pytest.approx(0.7**2, abs=0.02)
    assert noisy.distance(truth + 0.9, unit=1.0).mean() != pytest.approx(0.7**2, abs=0.02)


def noisy_directions(draws: int, samples: int, scatter: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws of length 1 scattered about directions, and these."""
    truth = RNG.normal(size=(samples, 12))
    truth /= np.linalg.norm(truth, axis=-1, keepdims=True)
    found = truth + scatter * RNG.normal(size=(draws, samples, 12))
    return found / np.linalg.norm(found, axis=-1, keepdims=True), truth


def test_a_mean_of_directions_that_is_shorter_than_they_are_is_no_distance():
    draws, truth = noisy_directions(16, 3000, 0.25)
    noisy = NoisyOutputs(DIRECTIONS, draws)
    apart, noise = noisy.distance(truth), noisy.noise_distance()
    assert noise.mean() == pytest.approx(1, rel=1e-9)
    assert abs(apart.mean()) < 4 * apart.std() / np.sqrt(3000)
    as_values = NoisyOutputs(VALUES, draws)
    assert as_values.distance(truth).mean() / as_values.noise_distance().mean() > 0.1  # R of a healthy embedding
    expected = np.mean((draws - truth) ** 2)
    assert noisy.noise_variance == pytest.approx(expected, rel=0.02)
    turned = np.roll(truth, 1, axis=-1)
    assert noisy.distance(turned).mean() == pytest.approx(np.mean((turned - truth) ** 2) / expected, rel=0.06)


def test_vectors_of_length_1_are_directions_and_others_where_a_person_says_so():
    graph = gs.Graph(outputs=[gs.Variable("y", dtype=np.float32)])
    unit = noisy_directions(2, 50, 0.1)[1].astype(np.float32)
    assert recognise_outputs(graph, {"y": unit})["y"].meaning is Meaning.DIRECTIONS
    assert recognise_outputs(graph, {"y": 2 * unit})["y"].meaning is Meaning.VALUES
    assert recognise_outputs(graph, {"y": np.abs(unit)})["y"].meaning is Meaning.VALUES
    told = recognise_outputs(graph, {"y": 2 * unit}, {"y": "directions"})["y"]
    np.testing.assert_allclose(told.probabilities(2 * unit), unit, rtol=1e-5)
    with pytest.raises(InputError, match="no vector of each sample"):
        recognise_outputs(graph, {"y": unit[:, :, None]}, {"y": "directions"})


def test_the_divergence_without_noise_is_that_of_numpy():
    p, q = softmax(RNG.normal(size=(50, 7))), softmax(RNG.normal(size=(50, 7)))
    found = NoisyOutputs(CLASSES, np.stack([p, p])).distance(q)
    np.testing.assert_allclose(found, kl(p, q), rtol=1e-9)
    single = NoisyOutputs(SINGLE, np.stack([p, p])).distance(q)
    both = kl(np.stack([p, 1 - p], -1), np.stack([q, 1 - q], -1)).mean(axis=1)
    np.testing.assert_allclose(single, both, rtol=1e-8)
    assert (np.abs(found - kl(q, p)) > 1e-3).any(), "the order of the two matters"


def test_the_forms_of_class_scores_agree():
    scores = RNG.normal(size=(20, 5, 3))
    truth = np.moveaxis(softmax(np.moveaxis(scores, 1, -1)), -1, 1)
    forms = {"logits": scores, "log": np.log(truth), "probabilities": truth}
    for form, output in forms.items():
        found = OutputKind(Meaning.CLASSES, form, 1, "").probabilities(output)
        np.testing.assert_allclose(found, np.moveaxis(truth, 1, -1), rtol=1e-12)
    single = OutputKind(Meaning.PROBABILITIES, "logits", -1, "").probabilities(scores)
    np.testing.assert_allclose(single, 1 / (1 + np.exp(-scores)), rtol=1e-12)


def test_scores_of_any_size_stay_finite():
    scores = np.array([[1e4, -1e4, 0.0]], np.float32)
    found = OutputKind(Meaning.CLASSES, "logits", 1, "").probabilities(scores)
    np.testing.assert_array_equal(found, [[1, 0, 0]])
    assert np.isfinite(NoisyOutputs(CLASSES, np.stack([found, found])).distance(softmax(-scores.astype(float)))).all()


def test_an_odd_number_of_draws_is_refused():
    for draws in (1, 3):
        with pytest.raises(InputError, match="even"):
            NoisyOutputs(VALUES, np.zeros((draws, 2, 2)))


def end(graph_text: str, parse, weights=None) -> gs.Graph:
    from vsfix.graph_passes.io.model_file import import_graph

    return import_graph(parse(graph_text, weights or {}))


def kind_of(parse, body, values, weights=None, told=None) -> OutputKind:
    return recognise_outputs(end(body, parse, weights), {"y": values}, told and {"y": told})["y"]


def test_softmax_and_sigmoid_say_what_an_output_is(parse):
    p = softmax(RNG.normal(size=(9, 4))).astype(np.float32)
    for op, meaning, form, values in (
        ("Softmax", Meaning.CLASSES, "probabilities", p),
        ("LogSoftmax", Meaning.CLASSES, "log", np.log(p)),
        ("Sigmoid", Meaning.PROBABILITIES, "probabilities", p),
    ):
        body = f"(float[N, 4] x) => (float[N, 4] y) {{ s = {op} (x) y = Identity (s) }}"
        found = kind_of(parse, body, values)
        assert (found.meaning, found.form) == (meaning, form)


def test_the_classes_of_a_softmax_are_found_behind_a_transpose(parse):
    p = softmax(RNG.normal(size=(9, 3, 4, 5))).astype(np.float32)
    body = "(float[N, 3, 4, 5] x) => (float[N, 5, 3, 4] y) { s = Softmax <axis = 3> (x) y = Transpose <perm = [0, 3, 1, 2]> (s) }"
    found = kind_of(parse, body, np.moveaxis(p, -1, 1))
    np.testing.assert_allclose(found.probabilities(np.moveaxis(p, -1, 1)).sum(axis=-1), 1, rtol=1e-5)
    plain = "(float[N, 5, 3, 4] x) => (float[N, 5, 3, 4] y) { y = Softmax <axis = 1> (x) }"
    assert kind_of(parse, plain, np.moveaxis(p, -1, 1)).axis == 1


def test_a_part_of_a_softmax_is_no_set_of_classes(parse):
    p = softmax(RNG.normal(size=(9, 4))).astype(np.float32)
    body = "(float[N, 4] x) => (float[N, 2] y) { s = Softmax (x) y = Slice (s, from, to, axes) }"
    weights = {"from": np.array([0]), "to": np.array([2]), "axes": np.array([1])}
    found = kind_of(parse, body, p[:, :2], weights)
    assert (found.meaning, found.form) == (Meaning.PROBABILITIES, "probabilities")


GEMM = "(float[N, 8] x) => (float[N, C] y) { y = Gemm (x, w) }"
LOGITS = np.random.default_rng(0)


def trained_scores(samples: int, classes: int) -> np.ndarray:
    """As training by cross-entropy leaves them: centred over the classes, one far above the others."""
    scores = LOGITS.normal(0, 1, (samples, classes)) + 6 * np.eye(classes)[LOGITS.integers(0, classes, samples)]
    return (scores - scores.mean(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_trained_scores_are_classes(parse, classes):
    found = kind_of(parse, GEMM, trained_scores(64, classes), {"w": np.zeros((8, classes), np.float32)})
    assert (found.meaning, found.form, found.axis) == (Meaning.CLASSES, "logits", 1)


@pytest.mark.parametrize("columns", [1, 2, 3, 8, 64])
def test_columns_of_a_regression_and_embeddings_are_values(parse, columns):
    for size in (0.1, 1.0, 10.0):
        values = (size * RNG.normal(size=(64, columns)) + 3).astype(np.float32)
        assert kind_of(parse, GEMM, values, {"w": np.zeros((8, columns), np.float32)}).meaning is Meaning.VALUES


@pytest.mark.parametrize("resized", [False, True])
def test_scores_of_every_pixel_are_classes_along_the_channels(parse, resized):
    scores = np.moveaxis(trained_scores(8 * 16, 5).reshape(8, 4, 4, 5), -1, 1)
    y = 'c = Conv (x, w) y = Resize <mode = "linear"> (c, , scales)' if resized else "y = Conv (x, w)"
    weights = {"w": np.zeros((5, 3, 1, 1), np.float32)}
    if resized:
        weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    found = kind_of(parse, f"(float[N, 3, H, W] x) => (float[N, 5, A, B] y) {{ {y} }}", scores, weights)
    assert (found.meaning, found.axis) == (Meaning.CLASSES, 1)


def test_what_a_person_says_is_taken(parse):
    weights = {"w": np.zeros((8, 4), np.float32)}
    values = RNG.normal(size=(32, 4)).astype(np.float32)
    assert kind_of(parse, GEMM, values, weights, "classes").form == "logits"
    assert kind_of(parse, GEMM, values, weights, "probabilities").form == "logits"
    assert kind_of(parse, GEMM, trained_scores(32, 4), weights, "values").meaning is Meaning.VALUES


@pytest.mark.parametrize(("told", "axis"), [("classes", 1), ("probabilities", None)])
def test_what_is_a_probability_already_is_taken_as_it_is(parse, told, axis):
    """A person says what the last nodes hide, as where exporters spell a softmax out."""
    body = "(float[N, 4] x) => (float[N, 4] y) { e = Exp (x) s = ReduceSum (e, axes) y = Div (e, s) }"
    p = softmax(RNG.normal(size=(30, 4))).astype(np.float32)
    found = kind_of(parse, body, p, {"axes": np.array([1])}, told)
    assert found.form == "probabilities"
    np.testing.assert_allclose(found.probabilities(p), p)


def test_what_does_not_exist_is_refused(parse):
    graph = end(GEMM, parse, {"w": np.zeros((8, 4), np.float32)})
    values = {"y": np.zeros((4, 4), np.float32)}
    with pytest.raises(InputError, match="'z'"):
        recognise_outputs(graph, values, {"z": "values"})
    with pytest.raises(InputError, match="none of classes, probabilities, directions, values"):
        recognise_outputs(graph, values, {"y": "scores"})
    with pytest.raises(DataError, match="not finite"):
        recognise_outputs(graph, {"y": np.full((4, 4), np.nan, np.float32)})
    with pytest.raises(InputError, match="no axis of classes"):
        recognise_outputs(graph, {"y": np.zeros(4, np.float32)}, {"y": "classes"})


def test_whole_numbers_are_no_output_that_is_averaged(parse):
    graph = end("(float[N, 4] x) => (int64[N, 1] y) { y = ArgMax <axis = 1> (x) }", parse)
    assert recognise_outputs(graph, {"y": np.zeros((4, 1), np.int64)}) == {}
