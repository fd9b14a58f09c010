"""`vsfix reproduce`: the paper's claims as experiments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vsfix.pipeline.cli.completion import TABLES, words
from vsfix.pipeline.cli.options import complete_data, json_option, verbose_option
from vsfix.pipeline.host.terminal_text import print_line

if TYPE_CHECKING:
    from vsfix.trainers.training.training_config import TrainingConfig

_SETTLED_STEPS = 50  # 0.9^50: what is left of the initial statistics is half a percent
_UNSETTLED = (
    f"fewer than {_SETTLED_STEPS} steps in a run: the running statistics still hold what they began with, and no shift "
    "means anything; give more --samples or --epochs"
)


@click.command(name="reproduce")
@click.argument("tables", nargs=-1, required=True, metavar="TABLE...", shell_complete=words(TABLES))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder of runs and tables.")
@click.option(
    "--scale",
    type=click.Choice(["small", "full"]),
    default="small",
    show_default=True,
    help="small, for a CPU; full, the paper's networks and recipes.",
)
@click.option(
    "--data",
    default="fashion-mnist",
    show_default=True,
    metavar="D",
    shell_complete=complete_data,
    help="As `vsfix train` takes it.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Runs of each row."
)
@click.option("--epochs", type=int, metavar="N", help="Instead of the scale's.")
@click.option("--samples", type=int, metavar="N", help="Training images, instead of the scale's.")
@click.option("--precision", type=click.Choice(["auto", "32", "bf16"]), default="auto", show_default=True)
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Make the runs as Ray tasks: on the cluster at ADDRESS, or, without one, on this machine.",
)
@click.option("--cpus", type=click.IntRange(min=1), help="Cores of one Ray task.  [default: 1]")
@click.option("--gpus", type=click.FloatRange(min=0), help="GPUs of one Ray task.  [default: 0]")
@click.option("--dry-run", is_flag=True, help="List the runs that are missing, and make none.")
@json_option
@verbose_option
def command(
    tables: tuple[str, ...],
    output: Path,
    scale: str,
    data: str,
    seeds: int,
    epochs: int | None,
    samples: int | None,
    precision: str,
    ray: str | None,
    cpus: int | None,
    gpus: float | None,
    dry_run: bool,
    json_path: str | None,
    force: bool,
) -> None:
    """Make tables of the paper: figure1, sites, width, uout, last, remedies, regularization, or all.

    Each row is several training runs that differ in their seed. A finished run is kept in OUTPUT and never made again,
    whichever table asks for it; one that was broken off goes on. OUTPUT/TABLE.json and TABLE.md hold the results; they
    are written anew each time.
    """
    from vsfix.pipeline.cli.output import json_output
    from vsfix.pipeline.reproduction.experiments import EXPERIMENTS
    from vsfix.pipeline.reproduction.local_trials import run_locally
    from vsfix.pipeline.reproduction.ray_trials import RayCluster
    from vsfix.pipeline.reproduction.reproducing import ReproductionConfig, make_grids, missing_trials, reproduce
    from vsfix.pipeline.reproduction.summary import LEGEND, summary_table
    from vsfix.pipeline.reproduction.trial import Trial
    from vsfix.pipeline.reproduction.trial_store import TrialStore

    if ray is None and (cpus, gpus) != (None, None):
        raise click.UsageError("--cpus and --gpus are of Ray tasks: they go with --ray")
    with json_output("reproduce", json_path, force=force, again=True) as out:
        out.require()
        asked = {"epochs": epochs, "samples": samples, "precision": _precision(precision, ray, gpus)}
        changes = {name: value for name, value in asked.items() if value is not None}
        names = list(EXPERIMENTS) if "all" in tables else list(dict.fromkeys(tables))
        grids = make_grids(names, ReproductionConfig(scale, data, seeds, changes))
        missing = missing_trials(grids, TrialStore(output))
        print_line(f"{len(missing)} runs to make", err=True)
        warnings = [_UNSETTLED] if any(_steps(trial.training) < _SETTLED_STEPS for trial in missing) else []
        for warning in warnings:
            print_line(f"WARN {warning}", err=True)
        if dry_run:
            runs = [_name(trial.training) for trial in missing]
            out.tell("SKIP", f"{len(runs)} runs to make", warnings, {"missing": runs})
            out.show_view(runs)
            return
        left = iter(range(len(missing) - 1, -1, -1))

        def say(trial: Trial, failure: str) -> None:
            end = f"FAIL {failure}" if failure else "done"
            print_line(f"{_name(trial.training)}: {end}; {next(left)} left", err=True)

        cluster = RayCluster(None if ray == "local" else ray, cpus or 1, gpus or 0)
        found = reproduce(grids, output, run_trials=run_locally if ray is None else cluster.run, on_end=say)
        failed = len(found.failures)
        verdict = f"{len(found.summaries)} tables, {len(missing) - failed} runs made, {failed} failed"
        summaries = [summary.to_dict() for summary in found.summaries]
        document = {"tables": summaries, "failures": found.failures}
        out.tell("FAIL" if failed else "WARN" if warnings else "PASS", verdict, warnings, document)
        out.show_view(summary_table(summary) for summary in found.summaries)
        out.show_view([LEGEND, f"tables: {', '.join(str(output / f'{name}.md') for name in names)}"])
        found.require_complete()


def _steps(training: TrainingConfig) -> float:
    """Steps of a run; infinite where it takes a whole data set."""
    if training.samples is None:
        return math.inf
    return training.epochs * (training.samples // training.batch_size)


def _precision(precision: str, ray: str | None, gpus: float | None) -> str:
    """The device that `auto` means, in so many words: numbers of a GPU must not be mixed with those of a CPU."""
    import torch

    on_gpu = bool(gpus) if ray is not None else torch.cuda.is_available()
    return "bf16" if precision == "auto" and on_gpu else precision


def _name(training: TrainingConfig) -> str:
    """A run in words."""
    return f"{training.network.model}, {training.network.noise}, seed {training.seed}"
