from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from vsfix.graph_passes.errors import DataError, InputError
from vsfix.pipeline.comparison.tensor_comparison import compare_tensors
from vsfix.pipeline.comparison.tolerance import TOLERANCES, GivenTolerance, Tolerance
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.terminal.verification_table import accuracy_lines, budget_table, verification_table
from vsfix.pipeline.verification.verification import Stage, pooled_outputs, verify

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


def stages(*models, step="runtime"):
    return [Stage(step, f"{model.name} somewhere", model) for model in models]


@pytest.fixture
def samples():
    x = np.random.default_rng(1).normal(size=(101, 6))
    return Samples("numbers", {"x": x}, (x @ W).argmax(axis=1))


def check(samples, candidate, **options):
    return verify(Model(), stages(candidate), samples, **options).results[0]


def test_equal_models_pass(samples):
    result = verify(Model("a"), stages(Model("b")), samples)
    assert (result.status, result.reference, result.samples, result.data) == ("PASS", "a", 101, "numbers")
    assert result.results[0].outputs["y"].snr_db == math.inf
    assert result.results[0].decisions is not None
    assert result.results[0].decisions.task is not None
    assert result.results[0].decisions.task.output.count == 101


def test_the_batch_size_changes_nothing(samples):
    candidate = Model(y=lambda x: x @ W + 1e-5)
    results = [check(samples, candidate, batch_size=size) for size in (1, 7, 101, 1000)]
    for result in results[1:]:
        assert result.outputs["y"].snr_db == pytest.approx(results[0].outputs["y"].snr_db, abs=1e-6)
        assert result.decisions.divergence == pytest.approx(results[0].decisions.divergence, rel=1e-3, abs=1e-18)
        assert replace(result.decisions, divergence=0.0) == replace(results[0].decisions, divergence=0.0)


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
    assert result.reasons[0] == "1 of 101 decisions differ: agreement 99.0099%, wanted 100.0000%"
    assert result.worst_samples[0] == 5


def test_a_loss_of_accuracy_fails_and_a_gain_does_not(samples):
    def one_flip(x):
        y = x @ W
        y[np.abs(x[:, 0] - samples.inputs["x"][5, 0]) < 1e-12] *= -1
        return y

    loose = Tolerance(min_snr_db=-100, min_agreement=0, max_accuracy_loss=0.9)
    good, bad = Model(), Model(y=one_flip)
    lost = verify(good, stages(bad), samples, tolerance=loose).results[0]
    assert lost.reasons == ("top-1 99.01 %, 0.99 percentage points below the reference, allowed are 0.9",)
    assert verify(bad, stages(good), samples, tolerance=loose).status == "PASS"
    assert check(samples, bad, tolerance=Tolerance(-100, 0, 1)).status == "PASS"


def test_random_inputs_are_compared_by_number_only(samples):
    result = verify(Model(), stages(Model()), samples, random=True)
    assert result.random
    assert result.results[0].decisions is None
    assert accuracy_lines(result) == []


def test_outputs_are_paired_by_name_or_else_by_position(samples):
    two = {"p": lambda x: x @ W, "q": lambda x: x * 2}
    swapped = dict(reversed(two.items()))
    renamed = {"r": two["p"], "s": two["q"]}
    for outputs in (swapped, renamed):
        result = verify(Model(**two), stages(Model(**outputs)), samples).results[0]
        assert result.status == "PASS"
        assert list(result.outputs) == list(outputs)


def test_decisions_are_those_of_the_first_output_only_where_it_holds_logits(samples):
    image = Model(y=lambda x: (x @ W)[:, :, None])
    one_logit = Model(y=lambda x: x[:, :1])
    for model in (image, one_logit):
        assert verify(model, stages(model), samples).results[0].decisions is None


def test_every_candidate_is_judged_on_its_own_and_opened_one_at_a_time(samples):
    opened = []

    def candidates():
        for name, factor in (("good", 1.0), ("bad", 1.1)):
            opened.append(name)
            yield from stages(Model(name, y=lambda x, factor=factor: x @ W * factor))

    result = verify(Model(), candidates(), samples)
    assert opened == ["good", "bad"]
    assert [(row.candidate, row.status) for row in result.results] == [("good", "PASS"), ("bad", "FAIL")]
    assert result.status == "FAIL"


def test_other_numbers_of_outputs_are_refused(samples):
    with pytest.raises(DataError, match="give two models with the same outputs"):
        verify(Model(), stages(Model(p=lambda x: x, q=lambda x: x)), samples)


def test_other_shapes_are_refused(samples):
    with pytest.raises(DataError, match=r"\(101, 4\).*\(101, 3\)"):
        check(samples, Model(y=lambda x: (x @ W)[:, :3]))


def test_an_output_without_a_row_for_each_sample_is_refused(samples):
    with pytest.raises(DataError, match="one row for each sample"):
        pooled_outputs(Model(y=lambda x: x.mean()), samples, 10)


@pytest.mark.parametrize(
    "values",
    [
        {"min_snr_db": math.nan},
        {"min_snr_db": math.inf},
        {"min_agreement": 1.1},
        {"min_agreement": math.nan},
        {"max_accuracy_loss": -0.1},
        {"max_accuracy_loss": math.nan},
    ],
)
def test_a_tolerance_outside_its_range_is_refused(values):
    with pytest.raises(InputError, match=r"--m(in|ax)-"):
        Tolerance(**values)


def test_the_table_has_one_row_for_each_output(samples):
    model = Model(p=lambda x: x @ W, q=lambda x: x)
    result = verify(model, stages(model, model), samples)
    assert verification_table(result).row_count == 4
    assert accuracy_lines(result)[0].startswith("model: top-1 100.00 % (96.34 to 100.00), reference 100.00 %")


def test_one_number_a_sample_has_no_cosine(samples):
    model = Model(y=lambda x: x[:, :1])
    table = verification_table(verify(model, stages(Model(y=lambda x: -x[:, :1])), samples))
    assert dict(zip([c.header for c in table.columns], [list(c.cells) for c in table.columns], strict=True))[
        "smallest cosine"
    ] == ["-"]


def test_the_budget_names_the_step_that_costs(samples):
    exported = Model("export", y=lambda x: x @ W * (1 + 1e-7))
    cast = Model("half", y=lambda x: x @ W * (1 + 1e-3))
    result = verify(Model("truth"), stages(cast, step="cast"), samples, stages=stages(exported, step="export"))
    export, rounding, floor = result.results[0].budget
    assert [step.step for step in (export, rounding, floor)] == ["export", "cast", "noise floor"]
    assert (rounding.source, rounding.target) == ("export somewhere", "half somewhere")
    assert [export.snr_db, rounding.snr_db] == pytest.approx([140, 60], abs=0.01)
    assert floor.snr_db == math.inf
    assert (rounding.agreement, rounding.accuracy) == (1, 1)
    assert budget_table(result.results[0]).row_count == 3


def test_the_floor_is_what_a_model_does_not_repeat(samples):
    noise = np.random.default_rng(0)
    restless = Model("restless", y=lambda x: x @ W + noise.normal(0, 1e-3, (len(x), 4)))
    result = verify(Model(), stages(restless), samples, stages=stages(Model()), batch_size=40)
    assert 50 < result.results[0].budget[-1].snr_db < 80


def test_without_stages_there_is_no_budget(samples):
    assert check(samples, Model()).budget == ()


def test_layers_are_searched_where_a_candidate_fails_on_its_worst_samples(samples):
    def late(x):
        y = x @ W
        y[-1] += 3
        return y

    asked = []
    both = stages(Model(), Model(y=late))
    verify(Model(), both, samples, search=lambda index, inputs: asked.append((index, inputs["x"])))
    ((index, rows),) = asked
    assert (index, rows.shape) == (1, (4, 6))
    np.testing.assert_array_equal(rows[0], samples.inputs["x"][-1])


def test_the_coarsest_precision_decides_what_is_demanded_but_for_what_was_given():
    assert GivenTolerance().resolve("fp32", "fp16") == GivenTolerance().resolve("fp16", "fp32") == TOLERANCES["fp16"]
    assert GivenTolerance(min_snr_db=33).resolve("int8", "fp32") == Tolerance(33, 0.95, 1.0)
    assert TOLERANCES["fp32"].min_snr_db > TOLERANCES["tf32"].min_snr_db > TOLERANCES["bf16"].min_snr_db
