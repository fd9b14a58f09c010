"""Tables of the paper in one call: the grid, the runs that are missing, the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vsfix.graph_passes.errors import CheckFailedError, InputError
from vsfix.graph_passes.io.atomic_file import atomic_path
from vsfix.graph_passes.progress import stage
from vsfix.pipeline.host.console import json_text
from vsfix.pipeline.host.environment import describe_environment

from .experiments import SCALES, Cell, Experiment, make_experiment, training_of
from .local_trials import RunTrials, run_locally
from .shift_figure import shift_figure
from .summary import Summary, markdown_page, summarize
from .trial import Trial
from .trial_store import TrialStore


@dataclass(frozen=True)
class ReproductionConfig:
    """How large the experiments are.

    Attributes:
        scale: a name of `SCALES`.
        data: the data set.
        seeds: runs of each cell.
        changes: fields of `TrainingConfig` that are other than the scale's.

    Raises:
        InputError: an unknown scale, or no seeds.
    """

    scale: str = "small"
    data: str = "fashion-mnist"
    seeds: int = 3
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise InputError(f"scale '{self.scale}': must be one of {', '.join(SCALES)}")
        if self.seeds < 1:
            raise InputError(f"seeds: at least 1, not {self.seeds}")


@dataclass(frozen=True)
class Grid:
    """The runs of one experiment.

    Attributes:
        experiment: what they are for.
        trials: by cell, one for each seed.
    """

    experiment: Experiment
    trials: Mapping[Cell, tuple[Trial, ...]]


@dataclass(frozen=True)
class Reproduction:
    """The result of a reproduction.

    Attributes:
        summaries: one for each experiment.
        failures: the runs that have no result, each with the reason.
    """

    summaries: tuple[Summary, ...]
    failures: tuple[str, ...]

    def require_complete(self) -> None:
        """Fails where a run has no result.

        Raises:
            CheckFailedError: with the first reason.
        """
        if self.failures:
            raise CheckFailedError(
                f"runs without a result: {len(self.failures)}; the same command makes them again. The first:"
                f" {self.failures[0]}"
            )


def make_grids(names: Sequence[str], config: ReproductionConfig) -> tuple[Grid, ...]:
    """The runs of several experiments.

    Raises:
        InputError: an unknown experiment, data that is not there, or a value that can't be used.
    """
    scale = SCALES[config.scale]
    grids = []
    for name in names:
        experiment = make_experiment(name, scale)
        trials = {
            cell: tuple(
                Trial(training_of(experiment, cell, scale, config.data, seed, config.changes), experiment.repairs)
                for seed in range(config.seeds)
            )
            for cell in experiment.cells
        }
        grids.append(Grid(experiment, trials))
    return tuple(grids)


def missing_trials(grids: Sequence[Grid], store: TrialStore) -> tuple[Trial, ...]:
    """The runs that are to be made: each once, whichever experiments ask for it.

    Raises:
        DataError: a result in the folder is damaged.
    """
    wanted: dict[str, Trial] = {}
    for grid in grids:
        for trials in grid.trials.values():
            for trial in trials:
                known = wanted.get(trial.key)
                asked = trial.repairs if known is None else dict.fromkeys((*known.repairs, *trial.repairs))
                wanted[trial.key] = replace(trial, repairs=tuple(asked))
    return tuple(trial for trial in wanted.values() if store.load(trial) is None)


@stage("reproduce")
def reproduce(
    grids: Sequence[Grid],
    folder: Path,
    *,
    run_trials: RunTrials = run_locally,
    on_end: Callable[[Trial, str], None] = lambda trial, failure: None,
) -> Reproduction:
    """Makes the runs that are missing and writes FOLDER/NAME.json, NAME.md and, of figure1, NAME.svg.

    Args:
        grids: the experiments.
        folder: of the results, see `trial_store`; finished runs in it are taken as they are.
        run_trials: where the runs are made.
        on_end: told of each run that ended, and of its failure, empty where there is none.

    Raises:
        VsfixError: see `train`; the finished runs are kept.
    """
    store = TrialStore(folder)
    failures = []
    for outcome in run_trials(missing_trials(grids, store), store):
        if outcome.result is not None:
            store.save(outcome.trial, outcome.result)
        else:
            network = outcome.trial.training.network
            failures.append(f"{network.model}, {network.noise}, seed {outcome.trial.training.seed}: {outcome.failure}")
        on_end(outcome.trial, outcome.failure)
    return Reproduction(tuple(_write(grid, store) for grid in grids), tuple(failures))


def _write(grid: Grid, store: TrialStore) -> Summary:
    """The files of one experiment, from what is finished of it."""
    loaded = {cell: [store.load(trial) for trial in trials] for cell, trials in grid.trials.items()}
    summary = summarize(grid.experiment, loaded)
    content = summary.to_dict() | {
        "environment": describe_environment(),
        "trials": [
            {"labels": cell.labels, "key": trial.key, "training": trial.training.to_dict()}
            | {"result": None if result is None else result.to_dict()}
            for cell, trials in grid.trials.items()
            for trial, result in zip(trials, loaded[cell], strict=True)
        ],
    }
    _replace(store.folder / f"{grid.experiment.name}.json", json_text(content) + "\n")
    _replace(store.folder / f"{grid.experiment.name}.md", markdown_page(summary, _facts(grid)))
    if grid.experiment.name == "figure1":
        finished = {cell: [result for result in found if result is not None] for cell, found in loaded.items()}
        _replace(store.folder / "figure1.svg", shift_figure(finished))
    return summary


def _facts(grid: Grid) -> dict[str, str]:
    """The configuration that was run, in words."""
    trainings = {trials[0].training.network.model: trials[0].training for trials in grid.trials.values()}
    samples = {model: "all" if one.samples is None else str(one.samples) for model, one in trainings.items()}
    environment = describe_environment()
    return {
        "data": next(iter(trainings.values())).data,
        "images": _each(samples),
        "epochs": _each({model: str(one.epochs) for model, one in trainings.items()}),
        "seeds": str(len(next(iter(grid.trials.values())))),
        "vsfix": environment["vsfix"],
        "torch": environment["torch"],
        "on": environment["machine"],
    }


def _each(values: Mapping[str, str]) -> str:
    """The value that all networks share, or that of each."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return " and ".join(f"{value} ({model})" for model, value in values.items())


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
