from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner

from vsfix.graph_passes.errors import CheckFailedError, DataError, InputError
from vsfix.pipeline.cli.main import vsfix
from vsfix.pipeline.reproduction import reproducing
from vsfix.pipeline.reproduction.experiments import SCALES, make_experiment
from vsfix.pipeline.reproduction.local_trials import Outcome, run_locally
from vsfix.pipeline.reproduction.reproducing import Grid, ReproductionConfig, make_grids, missing_trials, reproduce
from vsfix.pipeline.reproduction.trial import PAIRED, RE_ESTIMATED, TrialResult
from vsfix.pipeline.reproduction.trial_store import TrialStore

CONFIG = ReproductionConfig("small", "digits", 2, {"epochs": 1, "samples": 64, "batch_size": 32})

RESULT = json.dumps(TrialResult(0.5, 1.0, 1.0, 1.0, (), (), None).to_dict())


@pytest.fixture
def grids():
    return make_grids(["last"], CONFIG)


def test_tables_are_made_and_no_run_is_made_twice(grids, tmp_path, monkeypatch):
    ended = []
    found = reproduce(grids, tmp_path, on_end=lambda trial, failure: ended.append((trial.key, failure)))
    assert len(ended) == 8
    assert {failure for _, failure in ended} == {""}
    assert found.failures == ()
    content = json.loads((tmp_path / "last.json").read_text())
    assert content["schema_version"] == 1
    assert [row["runs"] for row in content["rows"]] == [2, 2, 2, 2]
    accuracies = [100 * trial["result"]["accuracy"] for trial in content["trials"] if trial["labels"][1] == "none"]
    assert content["rows"][0]["top-1 %"]["mean"] == pytest.approx(sum(accuracies) / 2, rel=1e-12)
    page = (tmp_path / "last.md").read_text()
    assert page.startswith("The paper's claim: Dropout downstream of the last BatchNorm")
    assert page.count("\n| ") == 6
    assert "data digits, images 64, epochs 1, seeds 2" in page
    monkeypatch.setattr(reproducing, "run_locally", None)
    again = reproduce(grids, tmp_path, run_trials=lambda trials, store: iter(pytest.fail("runs") for _ in trials))
    assert again.summaries == found.summaries


def test_an_experiment_takes_the_runs_of_another(tmp_path):
    last, remedies = make_grids(["last", "remedies"], CONFIG)
    store = TrialStore(tmp_path)
    shared = {trial.key for trials in last.trials.values() for trial in trials}
    both = missing_trials([last, remedies], store)
    assert len(both) == len({trial.key for trial in both}) == 8 + 20 - 4
    # What is asked for with its repairs by one of them is run with its repairs.
    assert all(trial.repairs for trial in both if trial.key not in shared)
    assert sum(bool(trial.repairs) for trial in both if trial.key in shared) == 4


def test_a_run_without_its_repairs_is_measured_again_and_not_trained_again(make_trial, tmp_path):
    store, plain, repaired = TrialStore(tmp_path), make_trial(), make_trial(repairs=(PAIRED,))
    (outcome,) = run_locally([plain], store)
    store.save(plain, outcome.result)
    assert store.load(plain) == outcome.result
    assert store.load(repaired) is None
    checkpoint = store.run_folder(plain) / "checkpoint.pt"
    before = checkpoint.stat().st_ino
    (outcome,) = run_locally([repaired], store)
    assert set(outcome.result.repairs) == {PAIRED}
    assert checkpoint.stat().st_ino == before


def test_the_repairs_of_two_tables_are_measured_at_once_and_kept(make_trial, tmp_path):
    store, result = TrialStore(tmp_path), TrialResult(0.5, 1.0, 1.0, 1.0, (), (), None)
    experiment = make_experiment("last", SCALES["small"])
    cell = experiment.cells[0]
    one, other = make_trial(repairs=(PAIRED,)), make_trial(repairs=(RE_ESTIMATED,))
    grids = [Grid(experiment, {cell: (trial,)}) for trial in (one, other)]
    assert [trial.repairs for trial in missing_trials(grids, store)] == [(PAIRED, RE_ESTIMATED)]
    store.save(one, replace(result, repairs={PAIRED: 0.75}))
    assert [trial.repairs for trial in missing_trials(grids, store)] == [(PAIRED, RE_ESTIMATED)]
    store.save(other, replace(result, repairs={RE_ESTIMATED: 0.25}))
    assert store.load(one).repairs == {PAIRED: 0.75, RE_ESTIMATED: 0.25}
    assert missing_trials(grids, store) == ()


def test_a_run_whose_numbers_run_away_costs_itself_alone(make_trial, tmp_path):
    trials = [make_trial(0, learning_rate=1e30), make_trial(1)]
    first, second = run_locally(trials, TrialStore(tmp_path))
    assert (first.result, "loss is" in first.failure or "finite" in first.failure) == (None, True)
    assert second.result is not None


def test_a_page_says_how_each_of_its_networks_was_trained(tmp_path):
    grids = make_grids(["regularization"], ReproductionConfig("small", "digits", 2))
    found = reproduce(grids, tmp_path, run_trials=lambda trials, store: iter(()))
    assert [row.runs for row in found.summaries[0].rows] == [0] * 8
    page = (tmp_path / "regularization.md").read_text()
    assert "images 2000 (mlp-1) and 500 (preresnet-8), epochs 60, seeds 2" in page


def test_failures_are_said_and_the_others_summarized(grids, tmp_path):
    def half(trials, store):
        for index, trial in enumerate(trials):
            yield Outcome(trial, None, "its worker was lost") if index % 2 else next(run_locally([trial], store))

    found = reproduce(grids, tmp_path, run_trials=half)
    assert [row.runs for row in found.summaries[0].rows] == [1, 1, 1, 1]
    with pytest.raises(
        CheckFailedError, match=r"without a result: 4; .* preresnet-20, none, seed 1: its worker was lost"
    ):
        found.require_complete()


@pytest.mark.parametrize("change", ['{"accuracy": 1', '{"accuracy": 1}', "[]", RESULT.replace("0.5", "null", 1)])
def test_a_damaged_result_is_named(grids, tmp_path, change):
    (trial, *_) = missing_trials(grids, TrialStore(tmp_path))
    path = tmp_path / "trials" / trial.key / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(change)
    with pytest.raises(DataError, match=r"result\.json: damaged .* delete it"):
        missing_trials(grids, TrialStore(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"), [({"scale": "huge"}, "must be one of small, full"), ({"seeds": 0}, "at least 1")]
)
def test_what_can_not_be_reproduced_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        ReproductionConfig(**change)


def test_the_command_prints_the_tables_and_says_what_is_missing(tmp_path):
    arguments = ["reproduce", "figure1", "-o", str(tmp_path), "--data", "digits", "--epochs", "2", "--samples", "70"]
    arguments += ["--seeds", "1"]
    dry = CliRunner().invoke(vsfix, [*arguments, "--dry-run"])
    assert dry.exit_code == 0
    assert dry.stdout.splitlines() == [
        f"densenet-22-8, {noise}, seed 0" for noise in ("none", "a=dropout:0.5", "b=dropout:0.5")
    ]
    assert not tmp_path.joinpath("figure1.md").exists()
    assert "WARN fewer than 50 steps" in dry.stderr
    longer = CliRunner().invoke(vsfix, [*arguments, "--dry-run", "--epochs", "50"])
    assert "WARN" not in longer.stderr
    done = CliRunner().invoke(vsfix, arguments)
    assert done.exit_code == 0, done.stderr
    assert "77.42 % (CIFAR-100)" in done.stdout
    assert re.findall(r"(\d) left", done.stderr) == ["2", "1", "0"]
    svg = (tmp_path / "figure1.svg").read_text()
    assert svg.startswith("<svg")
    assert "Dropout 0.5 at a" in svg


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure7"], "experiment 'figure7': must be one of figure1"),
        (["last", "--data", "mnist"], "data 'mnist': unknown"),
        (["last", "--data", "digits", "--epochs", "0"], "epochs must be"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    done = CliRunner().invoke(vsfix, ["reproduce", *arguments, "-o", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
