from __future__ import annotations

import math

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.pipeline.calibration import Samples
from vsfix.pipeline.metrics import compare_tensors
from vsfix.pipeline.verification import Tolerance, pooled_outputs, verify
from vsfix.pipeline.verification_table import accuracy_lines, verification_table

W = np.random.default_rng(0).normal(size=(6, 4))


class Model:
    """Outputs that are functions of the input; counts the batches."""

    def __init__(self, name="model", **outputs):
        self.name = name
        self.batches = 0
        self._outputs = outputs or {"y": lambda x: x @ W}

    def run(self, inputs):
        self.batches += 1
        return {name: function(inputs["x"]) for name, function in self._outputs.items()}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def samples():
    x = np.random.default_rng(1).normal(size=(101, 6))
    return Samples("numbers", {"x": x}, (x @ W).argmax(axis=1))


def check(samples, candidate, **options):
    return verify(Model(), [candidate], samples, **options).results[0]


def test_equal_models_pass(samples):
    result = verify(Model("a"), [Model("b")], samples)
    assert (result.status, result.reference, result.samples, result.data) == ("PASS", "a", 101, "numbers")
    assert result.results[0].outputs["y"].snr_db == math.inf
    assert result.results[0].decisions is not None
    assert result.results[0].decisions.output_accuracy is not None
    assert result.results[0].decisions.output_accuracy.count == 101


def test_the_batch_size_changes_nothing(samples):
    candidate = Model(y=lambda x: x @ W + 1e-5)
    results = [check(samples, candidate, batch_size=size) for size in (1, 7, 101, 1000)]
    for result in results[1:]:
        assert result.outputs["y"].snr_db == pytest.approx(results[0].outputs["y"].snr_db, abs=1e-6)
        assert result.decisions == results[0].decisions


def test_the_numbers_are_pooled_over_the_whole_set(samples):
    # An error in the last batch alone: a mean over batches would weigh it by the batch.
    def late(x):
        y = x @ W
        y[np.abs(x[:, 0] - samples.inputs["x"][-1, 0]) < 1e-12] += 3
        return y

    found = check(samples, Model(y=late), batch_size=10).outputs["y"]
    x = samples.inputs["x"]
    assert found.snr_db == pytest.approx(compare_tensors(x @ W, late(x)).snr_db, abs=1e-9)
    assert found.max_abs == pytest.approx(3, abs=1e-12)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda x: x @ W * 1.001, "SNR 60.0 dB, wanted 80 dB"),
        (lambda x: np.where(np.abs(x[:, :1] - 0.5) < 0.2, np.nan, x @ W), "NaN"),
        (lambda x: (x @ W) / 0, "infinities"),
        (lambda x: np.roll(x @ W, 1, axis=1), "decisions differ"),
    ],
    ids=["scale", "nan", "inf", "classes moved"],
)
def test_a_planted_mistake_fails_with_its_reason(samples, mistake, words):
    with np.errstate(divide="ignore"):
        result = check(samples, Model(y=mistake))
    assert result.status == "FAIL"
    assert any(words in reason for reason in result.reasons)


def test_the_tolerance_decides_and_the_numbers_do_not_depend_on_it(samples):
    candidate = Model(y=lambda x: x @ W * 1.001)
    strict, loose = (check(samples, candidate, tolerance=Tolerance(min_snr_db=snr)) for snr in (60.1, 59.9))
    assert (strict.status, loose.status) == ("FAIL", "PASS")
    assert strict.outputs == loose.outputs


def test_one_flip_is_enough_for_an_agreement_of_one(samples):
    def one_flip(x):
        y = x @ W
        y[np.abs(x[:, 0] - samples.inputs["x"][5, 0]) < 1e-12] *= -1
        return y

    result = check(samples, Model(y=one_flip), tolerance=Tolerance(min_snr_db=-100, min_agreement=1.0))
    assert result.reasons == ("1 of 101 decisions differ: agreement 99.0099%, wanted 100.0000%",)


def test_random_inputs_are_compared_by_number_only(samples):
    result = verify(Model(), [Model()], samples, random=True)
    assert result.random
    assert result.results[0].decisions is None
    assert accuracy_lines(result) == []


def test_outputs_are_paired_by_name_or_else_by_position(samples):
    two = {"p": lambda x: x @ W, "q": lambda x: x * 2}
    swapped = dict(reversed(two.items()))
    renamed = {"r": two["p"], "s": two["q"]}
    for outputs in (swapped, renamed):
        result = verify(Model(**two), [Model(**outputs)], samples).results[0]
        assert result.status == "PASS"
        assert list(result.outputs) == list(outputs)


def test_decisions_are_those_of_the_first_output_only_where_it_holds_logits(samples):
    image = Model(y=lambda x: (x @ W)[:, :, None])
    one_logit = Model(y=lambda x: x[:, :1])
    for model in (image, one_logit):
        assert verify(model, [model], samples).results[0].decisions is None


def test_every_candidate_is_judged_on_its_own_and_opened_one_at_a_time(samples):
    opened = []

    def candidates():
        for name, factor in (("good", 1.0), ("bad", 1.1)):
            opened.append(name)
            yield Model(name, y=lambda x, factor=factor: x @ W * factor)

    result = verify(Model(), candidates(), samples)
    assert opened == ["good", "bad"]
    assert [(row.candidate, row.status) for row in result.results] == [("good", "PASS"), ("bad", "FAIL")]
    assert result.status == "FAIL"


def test_other_numbers_of_outputs_are_refused(samples):
    with pytest.raises(DataError, match="give two models with the same outputs"):
        verify(Model(), [Model(p=lambda x: x, q=lambda x: x)], samples)


def test_other_shapes_are_refused(samples):
    with pytest.raises(DataError, match=r"\(101, 4\).*\(101, 3\)"):
        check(samples, Model(y=lambda x: (x @ W)[:, :3]))


def test_an_output_without_a_row_for_each_sample_is_refused(samples):
    with pytest.raises(DataError, match="one row for each sample"):
        pooled_outputs(Model(y=lambda x: x.mean()), samples, 10)


@pytest.mark.parametrize(
    "values", [{"min_snr_db": math.nan}, {"min_snr_db": math.inf}, {"min_agreement": 1.1}, {"min_agreement": math.nan}]
)
def test_a_tolerance_outside_its_range_is_refused(values):
    with pytest.raises(InputError, match="--min-"):
        Tolerance(**values)


def test_the_table_has_one_row_for_each_output(samples):
    model = Model(p=lambda x: x @ W, q=lambda x: x)
    result = verify(model, [model, model], samples)
    assert verification_table(result).row_count == 4
    assert accuracy_lines(result)[0].startswith("model: top-1 100.00 % (96.34 to 100.00), reference 100.00 %")
