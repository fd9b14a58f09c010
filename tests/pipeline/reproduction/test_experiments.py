from __future__ import annotations

import pytest

from vsfix.graph_passes.errors import InputError
from vsfix.pipeline.reproduction.experiments import EXPERIMENTS, SCALES, make_experiment, training_of
from vsfix.pipeline.reproduction.trial import REPAIRS


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_is_a_run_that_can_be_made(name, scale):
    experiment = make_experiment(name, SCALES[scale])
    assert experiment.name == name
    assert len({cell.labels for cell in experiment.cells}) == len(experiment.cells)
    assert all(len(cell.labels) == len(experiment.headings) for cell in experiment.cells)
    for cell in experiment.cells:
        training = training_of(experiment, cell, SCALES[scale], "digits", 3, {"samples": 500})
        assert (training.seed, training.samples, training.network.model) == (3, 500, cell.model)
        assert str(training.network.noise) == (cell.noise[0] if cell.noise != ("none",) else "none")


def test_full_runs_follow_the_recipes_of_the_papers():
    scale = SCALES["full"]
    experiment = make_experiment("sites", scale)
    found = {cell.model: training_of(experiment, cell, scale, "digits", 0, {}) for cell in experiment.cells}
    assert {model: (run.epochs, run.batch_size) for model, run in found.items()} == {
        "preresnet-110": (164, 128),
        "densenet-100-12": (300, 64),
        "wrn-28-10": (200, 128),
        "resnext-29-8x64d": (300, 128),
    }


def test_the_user_s_changes_win_over_the_experiment_s_and_these_over_the_scale_s():
    scale = SCALES["small"]
    width = make_experiment("width", scale)
    assert training_of(width, width.cells[0], scale, "digits", 0, {}).samples == scale.width_changes["samples"]
    assert training_of(width, width.cells[0], scale, "digits", 0, {"samples": 99}).samples == 99


def test_networks_of_one_table_may_be_trained_differently():
    scale = SCALES["small"]
    table = make_experiment("regularization", scale)
    found = {cell.model: training_of(table, cell, scale, "digits", 0, {}) for cell in table.cells}
    assert {model: (run.samples, run.epochs) for model, run in found.items()} == {
        "mlp-1": (2000, 60),
        "preresnet-8": (500, 60),
    }
    assert training_of(table, table.cells[0], scale, "digits", 0, {"epochs": 7}).epochs == 7


@pytest.mark.parametrize("scale", SCALES)
def test_rows_are_compared_with_rows_of_their_own_network(scale):
    table = make_experiment("regularization", SCALES[scale])
    for label in {label for _, label in table.compared} - set(REPAIRS):
        assert [cell.model for cell in table.cells if cell.labels[-1] == label] == list(SCALES[scale].regularized)


def test_the_numbers_of_the_paper_stand_where_the_paper_has_them():
    numbers = {
        (name, cell.labels[-1]): cell.paper
        for name in EXPERIMENTS
        for cell in make_experiment(name, SCALES["full"]).cells
        if cell.paper != "not available"
    }
    assert set(numbers) == {
        ("figure1", "none"),
        ("figure1", "Dropout 0.5 at a"),
        ("uout", "Dropout 0.1"),
        ("uout", "Uout 0.1"),
        ("uout", "Uout 0.2"),
        ("last", "Dropout 0.1"),
    }
    assert "77.42" in numbers["figure1", "none"]
    assert "68.55" in numbers["figure1", "Dropout 0.5 at a"]
    assert "0.9967" in numbers["uout", "Uout 0.1"]


def test_an_unknown_experiment_is_refused():
    with pytest.raises(InputError, match="must be one of figure1, sites, width, uout, last, remedies, regularization"):
        make_experiment("figure2", SCALES["small"])
