"""Finds the noise of a training run from the statistics that it left behind, where the file has lost its markers.

A hypothesis is a kind of noise, a place in every block, and a ratio. Under the right one the calibration set, run with
that noise on, gives what the file stores; how far it is from that is the mismatch (see `mismatch`), and `noise_search`
looks for the hypothesis that leaves the least of it. The verdict:

    no noise                 the mismatch without noise is what so few images show by chance
    found                    a hypothesis leaves no more than chance, or a tenth, and no other place explains as much
    ambiguous                several places explain as much
    not explained by noise   all leave more: another data domain, another preprocessing, stale statistics
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx_graphsurgeon as gs

from .batch_norm import require_batch_norms
from .batches import Batch
from .errors import InputError
from .inference import OpenModel
from .marker import marker_label, read_marker
from .mismatch import excess_of, mismatch_of
from .noise import Noise
from .noise_search import EXPLAINED, RIVAL, Hypothesis, InferenceConfig, NoiseSearch, Trial, by_chance, is_rival, ranked

CLEAN = 1.5  # times chance: without noise, up to here there is none
MOSTLY_EXPLAINED = 0.9  # of the mismatch without noise
ENOUGH_SAMPLES = 256


class Verdict(Enum):
    """What the statistics say."""

    FOUND = "found"
    NO_NOISE = "no noise"
    NOT_EXPLAINED = "not explained by noise"
    AMBIGUOUS = "ambiguous"


@dataclass(frozen=True)
class NoiseInference:
    """What the stored statistics say about the noise of the training run.

    Attributes:
        verdict: in one word.
        sites: the noise by the name of the tensor, for `InsertNoise(sites, tensors_only=True)`; empty unless `found`.
        description: the answer in words.
        confidence: why it may be believed, or what speaks against it.
        without: the mismatch without noise, the sum over the BatchNorms.
        best: the hypothesis that leaves the least; None where none was tried.
        runner_up: the best at another place; None where there is none.
        expected: the mismatch that the truth would show by chance.
        per_batch_norm: what the answer leaves at each BatchNorm.
        interval: where the ratio is, see `ratio_search`; None unless a hypothesis was fitted.
        hypotheses: everything that was tried, the best first.
        untried: the number of places, the rarest, that the limit left out.
        samples: the number of images.
        is_partial: whether noise was found that leaves more than chance unexplained.
    """

    verdict: Verdict
    sites: Mapping[str, Noise]
    description: str
    confidence: str
    without: float
    best: Hypothesis | None
    runner_up: Hypothesis | None
    expected: float
    per_batch_norm: Mapping[str, float]
    interval: tuple[float, float] | None
    hypotheses: tuple[Hypothesis, ...]
    untried: int
    samples: int
    is_partial: bool = False


def infer_noise(
    graph: gs.Graph, batches: Sequence[Batch], open_model: OpenModel, config: InferenceConfig | None = None
) -> NoiseInference:
    """Searches the noise that explains the stored statistics.

    Args:
        graph: not changed; it must mark no noise.
        batches: the calibration set, some hundred images of the training data in batches of about 64.
        open_model: opens a part of the graph in a runtime.
        config: how to search.

    Raises:
        InputError: the graph marks noise already.
        ModelError: it has no BatchNorm.
        DataError: no data, or data that no statistic can be compared with.
    """
    config = config or InferenceConfig()
    require_batch_norms(graph)
    for node in graph.nodes:
        if read_marker(node) is not None:
            raise InputError(f"the file marks its noise already, as Dropout '{marker_label(node)}': nothing to infer")
    search = NoiseSearch(graph, batches, open_model, config)
    if mismatch_of(search.off) > CLEAN * by_chance(search.off, search.all.samples):
        search.try_places()
        search.try_other_kinds()
        search.fit_finalists()
    return _conclude(search)


def _conclude(search: NoiseSearch) -> NoiseInference:
    """Puts the result of a search into words and numbers."""
    samples = search.all.samples
    best = next(iter(ranked(search.fitted)), None)
    rival = None if best is None else _best_elsewhere(search, best)
    verdict, confidence = _judge(search, best, rival)
    left = best.curve.best if best and best.curve and verdict is not Verdict.NO_NOISE else search.off
    return NoiseInference(
        verdict=verdict,
        sites=best.row().sites if best and verdict is Verdict.FOUND else {},
        description=_describe(verdict, best, rival),
        confidence=confidence,
        without=mismatch_of(search.off),
        best=best.row() if best else None,
        runner_up=rival.row() if rival else None,
        expected=by_chance(left, samples),
        per_batch_norm=search.all.per_batch_norm(left),
        interval=best.curve.interval(search.all.bounds) if best and best.curve else None,
        hypotheses=tuple(trial.row() for trial in _everything(search)),
        untried=search.untried,
        samples=samples,
        is_partial=verdict is Verdict.FOUND and best is not None and not best.explains,
    )


def _judge(search: NoiseSearch, best: Trial | None, rival: Trial | None) -> tuple[Verdict, str]:
    """The verdict, and the reason."""
    without, samples = mismatch_of(search.off), search.all.samples
    chance = by_chance(search.off, samples)
    gain = excess_of(search.off) - best.excess if best else 0.0
    if best is None or gain < chance:
        if without <= EXPLAINED * chance:
            return Verdict.NO_NOISE, (
                f"the mismatch of {without:.3g} is near what {samples} images show by chance (about {chance:.2g})"
                f"{', and no noise lowers it' if best else ''}; weaker noise can't be excluded"
            )
        return Verdict.NOT_EXPLAINED, f"a mismatch of {without:.3g} where chance makes {chance:.2g}; no noise lowers it"
    if max(best.mismatch, best.expected) >= without:
        return Verdict.NOT_EXPLAINED, (
            f"a mismatch of {without:.3g} becomes {best.mismatch:.3g} where chance alone makes {best.expected:.2g}: "
            f"{samples} images do not decide; give more"
        )
    share = gain / excess_of(search.off)
    rest = f"{best.mismatch:.3g} of {without:.3g} is left where chance makes {best.expected:.2g}"
    if not best.explains and share < MOSTLY_EXPLAINED:
        return Verdict.NOT_EXPLAINED, f"{rest}, even with the best noise that was tried"
    if rival is not None and is_rival(rival, best, RIVAL):
        return Verdict.AMBIGUOUS, f"{rest}, but another place leaves {rival.mismatch:.3g}; {_decide(samples)}"
    elsewhere = f"; the best other place leaves {rival.mismatch:.3g}" if rival else ""
    if best.explains:
        return Verdict.FOUND, f"high: {rest}{elsewhere}{_other_kinds(search, best)}"
    cause = "the rest has another cause, such as augmentation or ratios that differ between the blocks"
    return Verdict.FOUND, f"moderate: {rest}{elsewhere}; {cause}"


def _decide(samples: int) -> str:
    """What may decide between two places."""
    return "more images may decide" if samples >= ENOUGH_SAMPLES else f"{samples} images are few, and none may be right"


def _describe(verdict: Verdict, best: Trial | None, rival: Trial | None) -> str:
    """The answer in words."""
    if best is None or verdict is Verdict.NO_NOISE:
        return "the stored statistics show no noise" if verdict is Verdict.NO_NOISE else "no noise explains the file"
    row = best.row()
    if verdict is Verdict.FOUND:
        return f"{row.noise} {row.place}"
    if verdict is Verdict.AMBIGUOUS and rival is not None:
        return f"{row.noise} {row.place}; or {rival.row().noise} {rival.place.description}"
    return (
        "no noise explains the stored statistics; likely the images are not those of the training (another domain, "
        f"another preprocessing), or the statistics are stale; the nearest is {row.noise} {row.place}"
    )


def _best_elsewhere(search: NoiseSearch, best: Trial) -> Trial | None:
    """The best hypothesis at another place; a place together with others is not another one."""
    here = set(best.place.tensors)
    elsewhere = (trial for trial in _everything(search) if trial.curve is not None)
    return next((trial for trial in elsewhere if not _nested(here, set(trial.place.tensors))), None)


def _nested(one: set[str], other: set[str]) -> bool:
    """Whether one of two sets holds the other."""
    return one <= other or other <= one


def _everything(search: NoiseSearch) -> list[Trial]:
    """All hypotheses, each by its best measurement, the best first; those that were not run are last."""
    fitted = {(trial.place, trial.kind) for trial in search.fitted}
    coarse = [trial for trial in search.coarse if (trial.place, trial.kind) not in fitted]
    return ranked([*search.fitted, *coarse]) + [trial for trial in coarse if trial.curve is None]


def _other_kinds(search: NoiseSearch, best: Trial) -> str:
    """The other kinds that explain as much at the same place, in words."""
    equal = [
        str(trial.row().noise)
        for trial in _everything(search)
        if trial.place == best.place and trial.kind != best.kind and trial.curve and is_rival(trial, best, RIVAL)
    ]
    return f"; {' and '.join(equal)} there explain it as well" if equal else ""
