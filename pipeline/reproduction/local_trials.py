"""Runs trials in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vsfix.graph_passes.errors import CheckFailedError
from vsfix.graph_passes.progress import stage

from .trial import Trial, TrialResult, run_trial
from .trial_store import TrialStore


@dataclass(frozen=True)
class Outcome:
    """How one trial ended.

    Attributes:
        trial: the trial.
        result: what it came to, or None.
        failure: why there is no result, in one line; empty where there is one.
    """

    trial: Trial
    result: TrialResult | None
    failure: str = ""


RunTrials = Callable[[Sequence[Trial], TrialStore], Iterator[Outcome]]
"""Runs trials somewhere and yields how each ended, in any order."""


def run_locally(trials: Sequence[Trial], store: TrialStore) -> Iterator[Outcome]:
    """Yields how each trial ended, in their order; a run whose numbers ran away costs itself alone.

    Raises:
        VsfixError: what would end the next run too: see `train`.
    """
    with stage("training runs", len(trials)) as runs:
        for trial in trials:
            try:
                yield Outcome(trial, run_trial(trial, store.run_folder(trial)))
            except CheckFailedError as error:
                yield Outcome(trial, None, str(error))
            runs.step()
