"""The search over hypotheses about lost noise: every place, several ratios and kinds, the best of them in full.

    places      Dropout at every place, a few ratios, on a part of the images. A place is skipped when the BatchNorms
                that noise there can't reach leave more mismatch than another place leaves in all
    kinds       other kinds of noise at the best places, and the best place together with another where one alone is
                not enough
    finalists   the ratio of the best few, on all images

What a hypothesis may leave by chance has two parts: the error of the calibration set, measured on its halves, and that
of the stored statistics, which a momentum of 0.1 and batches of 64 let rest on about 1,200 images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from .activation_cache import DEFAULT_MAX_MEMORY
from .batches import Batch, count_samples
from .errors import InputError
from .inference import Float64Array, OpenModel
from .mismatch import MismatchProbe, chance_of, excess_of, mismatch_of
from .noise import Noise, NoiseKind
from .noise_candidates import CandidatePlace, find_candidate_places
from .ratio_search import RatioCurve

TRAINING_SAMPLES = 1200  # what the stored statistics rest on: (2 - 0.1) / 0.1 batches of 64
# Times chance: a hypothesis leaves no more than this when it is the whole truth. Generous, for chance is estimated from
# one pair of halves: on networks whose truth is known it came out up to twice too small.
EXPLAINED = 4.0
RIVAL = 2.0  # times what the best place leaves: another one below this, and chance, is as good an explanation
PROMISING = 4.0  # the same after the coarse search: worth a fit on all images


@dataclass(frozen=True)
class InferenceConfig:
    """How to search.

    Attributes:
        ladder: the ratios that are tried at every place, ascending.
        coarse_samples: the images for that, in whole batches.
        finalists: how many hypotheses are fitted on all images, at most.
        max_places: how many places are tried, those that occur most often first.
        noise_seed: of the draws, the same for every hypothesis.
        max_memory: bytes that the process may hold; activations beyond go to the disk.

    Raises:
        InputError: a ladder that does not ascend within (0, 1), or a number below 1.
    """

    ladder: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7)
    coarse_samples: int = 256
    finalists: int = 3
    max_places: int = 12
    noise_seed: int = 0
    max_memory: int = DEFAULT_MAX_MEMORY

    def __post_init__(self) -> None:
        if not self.ladder or list(self.ladder) != sorted({t for t in self.ladder if 0 < t < 1}):
            raise InputError("noise inference: the ratios to try must ascend and lie in (0, 1)")
        if min(self.coarse_samples, self.finalists, self.max_places) < 1:
            raise InputError("noise inference: samples, finalists and places must be at least 1")


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis at its best ratio.

    Attributes:
        place: in words.
        tensors: the tensors that carry the noise.
        noise: kind and ratio; None where it was not run.
        mismatch: what it leaves, the sum over the BatchNorms; where it was not run, what it must leave at least.
        samples: the number of images that this was measured on.
    """

    place: str
    tensors: tuple[str, ...]
    noise: Noise | None
    mismatch: float
    samples: int

    @property
    def sites(self) -> dict[str, Noise]:
        """The noise by the name of the tensor, for `InsertNoise(sites, tensors_only=True)`; empty where not run."""
        return {} if self.noise is None else dict.fromkeys(self.tensors, self.noise)


@dataclass(eq=False)
class Trial:
    """One kind of noise at one place, while it is examined.

    Attributes:
        bound: the excess that it leaves at least, from the BatchNorms that it does not reach.
        curve: None where it was not run.
    """

    place: CandidatePlace
    kind: NoiseKind
    samples: int
    bound: float = 0.0
    curve: RatioCurve | None = None

    @property
    def excess(self) -> float:
        """What is left at the best ratio, or at least, without what chance makes."""
        return self.bound if self.curve is None else excess_of(self.curve.best)

    @property
    def expected(self) -> float:
        """The mismatch that it would show by chance if it were the truth."""
        return 0.0 if self.curve is None else by_chance(self.curve.best, self.samples)

    @property
    def mismatch(self) -> float:
        """What is left at the best ratio, or at least."""
        return self.bound if self.curve is None else mismatch_of(self.curve.best)

    @property
    def explains(self) -> bool:
        """Whether it leaves no more than chance may."""
        return self.curve is not None and self.mismatch <= EXPLAINED * self.expected

    def row(self) -> Hypothesis:
        """For the report."""
        noise = None if self.curve is None else Noise(self.kind, round(self.curve.best_ratio, 4))
        return Hypothesis(self.place.description, self.place.tensors, noise, self.mismatch, self.samples)


class NoiseSearch:
    """The state of one search.

    Attributes:
        all: measures on all images.
        off: the weighted residuals without noise on all images, shape (2, D).
        coarse: what was tried on a part of the images.
        fitted: what was fitted on all.
        untried: the number of places beyond the limit.
    """

    def __init__(
        self, graph: gs.Graph, batches: Sequence[Batch], open_model: OpenModel, config: InferenceConfig
    ) -> None:
        self._config = config
        self._places = find_candidate_places(graph)
        self.untried = max(len(self._places) - config.max_places, 0)
        self.all = self._probe(graph, batches, open_model)
        residuals, self._weights = self.all.evidence()
        self.off = residuals * self._weights
        few = _first_batches(batches, config.coarse_samples)
        self._few, self._few_off = self.all, self.off
        if len(few) < len(batches):
            self._few = self._probe(graph, few, open_model)
        self.coarse: list[Trial] = []
        self.fitted: list[Trial] = []

    def try_places(self) -> None:
        """Tries Dropout at every place on a part of the images."""
        if self._few is not self.all:
            self._few_off = self._few.residuals({}) * self._weights
        left = self._few.per_batch_norm(self._few_off)
        chance = chance_of(self._few_off)
        trials = [
            Trial(place, NoiseKind.DROPOUT, self._few.samples, _unreached(left, place) - chance)
            for place in self._places[: self._config.max_places]
        ]
        for trial in sorted(trials, key=lambda trial: trial.bound):
            best = ranked(self.coarse)[:1]
            if not best or trial.bound < RIVAL * max(best[0].excess, 0) + best[0].expected:
                self._climb(trial)
            self.coarse.append(trial)

    def try_other_kinds(self) -> None:
        """Tries other kinds at the best places, and the best place with each other one where it is not enough."""
        places = ranked(self.coarse)
        if not places:
            return
        for trial in places[: 1 if places[0].explains else self._config.finalists]:
            kinds = [NoiseKind.FEATURE_DROPOUT] * trial.place.spatial + [NoiseKind.DROP_PATH] * trial.place.branch
            for kind in kinds:
                self._try(trial.place, kind)
        best = ranked(self.coarse)[0]
        if not best.explains and best.excess < excess_of(self._few_off) / 2:
            for other in places[1 : self._config.finalists]:
                self._try(places[0].place.united_with(other.place), NoiseKind.DROPOUT)

    def fit_finalists(self) -> None:
        """Fits the ratio of the best hypotheses on all images."""
        trials = ranked(self.coarse)
        for trial in trials[: self._config.finalists]:
            if trial.curve is None or not is_rival(trial, trials[0], PROMISING):
                continue
            final = Trial(trial.place, trial.kind, self.all.samples)
            final.curve = self._curve(final, self.all, self.off)
            final.curve.refine(trial.curve.minimum())
            self.fitted.append(final)

    def _try(self, place: CandidatePlace, kind: NoiseKind) -> None:
        """Tries one more hypothesis on a part of the images."""
        trial = Trial(place, kind, self._few.samples)
        self._climb(trial)
        self.coarse.append(trial)

    def _climb(self, trial: Trial) -> None:
        """Measures a hypothesis on a part of the images, at the steps of the ladder and between them."""
        trial.curve = self._curve(trial, self._few, self._few_off)
        best = ranked(self.coarse)[:1]
        trial.curve.climb(
            self._config.ladder, beat=PROMISING * max(best[0].excess, 0) + best[0].expected if best else np.inf
        )

    def _curve(self, trial: Trial, probe: MismatchProbe, off: Float64Array) -> RatioCurve:
        """The curve of a hypothesis."""

        def measure(ratio: float) -> Float64Array:
            return probe.residuals(dict.fromkeys(trial.place.tensors, Noise(trial.kind, ratio))) * self._weights

        return RatioCurve(measure, off)

    def _probe(self, graph: gs.Graph, batches: Sequence[Batch], open_model: OpenModel) -> MismatchProbe:
        """Measures on some images."""
        return MismatchProbe(
            graph, batches, open_model, noise_seed=self._config.noise_seed, max_memory=self._config.max_memory
        )


def by_chance(weighted: Float64Array, samples: int) -> float:
    """The mismatch of the truth: the error of the calibration set, and that of the stored statistics."""
    return chance_of(weighted) * (1 + samples / TRAINING_SAMPLES)


def _unreached(left: Mapping[str, float], place: CandidatePlace) -> float:
    """The mismatch of the BatchNorms that noise at a place does not reach."""
    return sum(value for name, value in left.items() if name not in place.reached)


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Those that were run, the best first."""
    return sorted((trial for trial in trials if trial.curve), key=lambda trial: trial.excess)


def is_rival(trial: Trial, best: Trial, factor: float) -> bool:
    """Whether a hypothesis explains the statistics nearly as well as the best one."""
    return trial.excess <= factor * max(best.excess, 0) + best.expected


def _first_batches(batches: Sequence[Batch], samples: int) -> list[Batch]:
    """The first batches that hold so many samples, at least two batches."""
    taken: list[Batch] = []
    for batch in batches:
        if len(taken) > 1 and count_samples(taken) >= samples:
            break
        taken.append(batch)
    return taken
