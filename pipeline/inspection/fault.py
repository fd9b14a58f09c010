"""Which fault a file has beside noise: statistics that were never set or are stale, or data of another preprocessing.

What each BatchNorm stores is compared with what it sees, all noise that is known on, each downstream of corrected
predecessors, so that a BatchNorm that is off says so itself.

    never set    it stores mean 0 and variance 1 exactly, and sees others
    input        one affine map of the input, fitted to the first BatchNorm, explains most of what all are off by; or
                 the first BatchNorms alone are off: those that the input reaches through no other
    stale        all else: averaged or fine-tuned weights, another momentum, few batches, or another domain
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import BatchNorm, find_batch_norms, find_modules
from vsfix.graph_passes.errors import DataError
from vsfix.graph_passes.ir.graph import consumed_tensors
from vsfix.graph_passes.ir.runtime import Array, OpenModel
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.measurement.measurement import MeasurementConfig, measure
from vsfix.graph_passes.noise_inference.residuals import Residual, residuals_under_noise
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch, count_samples, first_samples, prescribed_batch_size
from vsfix.graph_passes.statistics.moments import Moments

RE_ESTIMATED = 128  # samples from which stored statistics are re-estimated under the noise
LEAST_SAMPLES = 16  # with fewer, sampling explains anything
MAPPED_SAMPLES = 256  # on which a map of the input is fitted
EXPLAINED = (
    0.75  # of what all BatchNorms are off by: where a map of the input explains so much, the input is the reason
)
WHOLE = 0.9  # the same, from which on the map is the reason, and not one for each column
BYTE = 255.0
LARGEST_SCALE, STEPS = 1000.0, 121
LARGEST_S2 = 4.0  # of noise upstream of the first BatchNorm
WORST = 3.0  # no channel counts as farther off
NEAR = 0.1  # relative: sampling moves a scale by some per cent
REESTIMATE = "vsfix optimize MODEL -o OUT --data DATA --method exact --layers all writes those of the data"


class FaultKind(str, Enum):
    """The faults beside noise."""

    UNSET = "statistics never set"
    INPUT = "another input"
    STALE = "stale statistics"


@dataclass(frozen=True)
class InputMap:
    """The map that would make the data that of the training: scale x + offset."""

    scale: float
    offset: float

    def apply(self, batches: Sequence[Batch]) -> list[Batch]:
        """The data with its only floating-point input mapped."""
        return [
            {name: self._mapped(array) if _is_float(array) else array for name, array in batch.items()}
            for batch in batches
        ]

    def _mapped(self, array: Array) -> Array:
        """One array, of the type that it has."""
        mapped: Array = (array * self.scale + self.offset).astype(array.dtype, copy=False)
        return mapped

    @property
    def is_byte(self) -> bool:
        """Whether the scale is that between bytes and numbers up to 1."""
        return any(abs(self.scale / scale - 1) <= NEAR for scale in (BYTE, 1 / BYTE))

    @property
    def sentence(self) -> str:
        """The map in words, by its name where it has one."""
        by = f"multiplied by {self.scale:.3g}" if abs(self.scale - 1) > NEAR else ""
        plus = f"{self.offset:+.3g}" if abs(self.offset) > NEAR else ""
        number = " and then shifted by ".join(filter(None, (by, plus))) if by else f"shifted by {plus}"
        for scale, name in ((1 / BYTE, "0..255 where the training had 0..1"), (BYTE, "0..1 where it had 0..255")):
            if abs(self.scale / scale - 1) <= NEAR:
                return f"the data, {number}, would explain it: it may be {name}"
        if not by:
            return f"the data, {number}, would explain it: it may be centred differently"
        return f"the data, {number}, would explain it"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: which.
        batch_norms: the names of those that are off, in the order of the graph.
        total: the number of BatchNorms that tell anything.
        worst: the name of the one that is farthest off.
        residual: of that one.
        input_map: of an input, where one was found.
        beside: the lost noise that the statistics tell once the data is mapped so; empty where none was looked for.
    """

    kind: FaultKind
    batch_norms: tuple[str, ...]
    total: int
    worst: str
    residual: Residual
    input_map: InputMap | None = None
    beside: str = ""

    def is_beyond(self, reached: Collection[str]) -> bool:
        """Whether a BatchNorm is off that no noise reaches: what is off by little else may be the noise's own doing.

        Args:
            reached: the names of those that noise reaches.
        """
        return not set(self.batch_norms) <= set(reached)

    @property
    def description(self) -> str:
        """The fault in words, with the numbers."""
        off = (
            f"{len(self.batch_norms)} of {self.total} BatchNorms, the worst '{self.worst}', its variances off by "
            f"{self.residual.before:.2f} of their size and its means by {self.residual.means:.2f} deviations (root "
            "mean square over its channels)"
        )
        if self.kind is FaultKind.UNSET:
            return (
                f"the statistics were never set: mean 0 and variance 1, and the data shows others, at {off}; most "
                f"likely weights were loaded or averaged without their buffers{self._beside('The others')}"
            )
        if self.kind is FaultKind.INPUT:
            said = "no scale and shift of the whole input explains it, unless the training augmented its data so"
            said = self.input_map.sentence if self.input_map else said
            return (
                "the data is not preprocessed as that of the training was, or of another domain: the input does not "
                f"fit the first statistics; off are {off}; {said}{self._beside('Mapped so, the statistics')}"
            )
        return (
            f"the statistics are stale, or the data is of another domain: with the noise that is known on, off are "
            f"{off}. They belong to other weights, averaged, fine-tuned or of an early epoch, or rest on few batches, "
            "or the training augmented its data far more than this"
        )

    def _beside(self, who: str) -> str:
        """The lost noise beside it, and who tells of it."""
        return f". {who} tell of lost noise too: {self.beside}" if self.beside else ""

    @property
    def remedy(self) -> str:
        """The remedy where no noise is known."""
        if self.kind is FaultKind.INPUT:
            return "Give the data as the training saw it: nothing else can be judged before"
        if self.kind is FaultKind.UNSET:
            return REESTIMATE
        return f"{REESTIMATE}; if noise was lost, say it first (--noise '{self.worst}=dropout:RATIO')"

    @property
    def sentence(self) -> str:
        """Both."""
        return f"{self.description}. {self.remedy}"


@stage("looking for other faults")
def find_fault(
    graph: gs.Graph,
    batches: Sequence[Batch],
    open_model: OpenModel,
    residuals: Mapping[str, Residual] | None = None,
    *,
    seed: int = 0,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> Fault | None:
    """Which fault the file has beside the noise that its graph marks; None where it has none, or nothing tells.

    Args:
        graph: not changed; with markers for all noise that is known.
        batches: the calibration set, shuffled.
        open_model: the runtime.
        residuals: where they are known already.
        seed: of the noise.
        max_memory: bytes that the process may hold; activations beyond go to the disk.

    Raises:
        DataError: data that is not finite.
    """
    if count_samples(batches) < LEAST_SAMPLES or not find_batch_norms(graph):
        return None
    if residuals is None:
        residuals = residuals_under_noise(graph, batches, open_model, seed=seed, max_memory=max_memory)
    off = {name: one for name, one in residuals.items() if one.is_off}
    if not off:
        return None
    modules = {module.name: module for module in find_modules(graph)}
    unset = [name for name in off if name in modules and modules[name].is_new]
    worst = max(unset or off, key=lambda name: _size(off[name]))
    if unset:
        return Fault(FaultKind.UNSET, tuple(unset), len(residuals), worst, off[worst])
    few = first_samples(batches, MAPPED_SAMPLES, whole=prescribed_batch_size(graph) is not None)
    found, share = _input_map(graph, few, open_model, residuals, seed)
    first = _reached_first(graph)
    has_others = not set(residuals) <= first
    if not has_others and not (found is not None and found.is_byte):
        share = 0.0  # with no BatchNorm downstream, nothing tells a map of the input from what is stale
    is_input = share >= EXPLAINED or (has_others and set(off) <= first)
    kind = FaultKind.INPUT if is_input else FaultKind.STALE
    return Fault(kind, tuple(off), len(residuals), worst, off[worst], found if share >= WHOLE else None)


def never_set(graph: gs.Graph) -> str:
    """The note on BatchNorms that store mean 0 and variance 1 exactly, where no data can tell more; empty for none."""
    modules = find_modules(graph)
    new = [module.name for module in modules if module.is_new]
    if not new:
        return ""
    return (
        f"{len(new)} of {len(modules)} BatchNorms store mean 0 and variance 1 exactly ('{new[0]}' the first), as where "
        "statistics were never set; samples of the training tell (--data)"
    )


def _size(residual: Residual) -> float:
    """How far off one BatchNorm is, squared."""
    return residual.before**2 + residual.means**2


def _reached_first(graph: gs.Graph) -> set[str]:
    """The BatchNorms that an input of the graph reaches through no other BatchNorm."""
    batch_norms = find_batch_norms(graph)
    ends = {id(batch_norm.node) for batch_norm in batch_norms}
    reached = {tensor.name for tensor in graph.inputs}
    for node in graph.nodes:
        if id(node) not in ends and any(tensor.name in reached for tensor in consumed_tensors(node)):
            reached |= {tensor.name for tensor in node.outputs}
    return {batch_norm.name for batch_norm in batch_norms if batch_norm.input.name in reached}


def _input_map(
    graph: gs.Graph, batches: Sequence[Batch], open_model: OpenModel, residuals: Mapping[str, Residual], seed: int
) -> tuple[InputMap | None, float]:
    """The affine map of the only input that fits the first BatchNorm, and the share that it explains of all."""
    floats = [name for name, array in batches[0].items() if _is_float(array)]
    first = next((one for one in find_modules(graph) if one.name in residuals), None)
    if len(floats) != 1 or first is None:
        return None, 0.0
    config = MeasurementConfig(())
    try:
        here, ones, both = (
            measure(graph, one.apply(batches), open_model, config)[first.name]
            for one in (InputMap(1.0, 0.0), InputMap(0.0, 1.0), InputMap(1.0, 1.0))
        )
    except DataError:  # what lies beyond the first BatchNorm overflows
        return None, 0.0
    informative = ~here.degenerate & (first.variance > 0)
    if informative.sum() < 2:
        return None, 0.0
    found = _fit_map(first, here, ones, both, informative)
    left = residuals_under_noise(graph, found.apply(batches), open_model, seed=seed)
    before, after = (sum(map(_size, some.values())) for some in (residuals, left))
    return found, 1 - after / max(before, float(np.finfo(np.float64).tiny))


def _fit_map(
    stored: BatchNorm, here: Moments, ones: Moments, both: Moments, informative: npt.NDArray[np.bool_]
) -> InputMap:
    """The map with which the first BatchNorm sees what it stores.

    Its input is affine in that of the network, so that three runs give its moments under every map:

        mean       constant + scale of_x + offset of_1
        variance   scale^2 var_x + 2 scale offset cov + offset^2 var_1        var_1: padding is not mapped

    For each scale the offset is that of least squares on the means; the scale is that of the least sum of squares of
    both, the variances by their logarithm. Lost noise that may stand upstream is tried beside: its variance is that of
    least squares on the variances, and it counts where it leaves less than half: a scale and noise stand in for each
    other.

    Args:
        stored: the BatchNorm.
        here: what it sees of the data.
        ones: of an input that is 1 everywhere.
        both: of the data plus 1.
        informative: the channels that tell something.
    """
    deviation = np.sqrt(np.where(informative, stored.variance, 1.0))
    constant = here.mean + ones.mean - both.mean
    of_x, of_1 = ((one.mean - constant) / deviation for one in (here, ones))  # (C,)
    wanted = (stored.mean - constant) / deviation
    var_x, var_1, var_both = (one.variance / deviation**2 for one in (here, ones, both))
    cov = (var_both - var_x - var_1) / 2

    def fitted(scale: float, most: float) -> tuple[float, float]:
        """The offset, and what is left with noise of so much variance at most."""
        rest, slope = (wanted - scale * of_x)[informative], of_1[informative]
        offset = float(rest @ slope) / max(float(slope @ slope), float(np.finfo(np.float64).tiny))
        variance = (scale**2 * var_x + 2 * scale * offset * cov + offset**2 * var_1)[informative]
        # Noise upstream of it that the file has lost adds s2 (mean^2 + variance).
        square = variance + (stored.mean[informative] / deviation[informative]) ** 2
        s2 = max(float((1 - variance) @ square), 0.0) / max(float(square @ square), float(np.finfo(np.float64).tiny))
        ratio = np.log(np.maximum(variance + min(s2, most) * square, np.finfo(np.float64).tiny))
        left = np.clip(ratio, -WORST, WORST) ** 2 + np.clip(rest - offset * slope, -WORST, WORST) ** 2
        return offset, float(left.sum())

    def best(most: float) -> tuple[InputMap, float]:
        """The map that leaves least, and what it leaves."""
        scales = np.geomspace(1 / LARGEST_SCALE, LARGEST_SCALE, STEPS)
        for _ in range(2):
            number = int(np.argmin([fitted(scale, most)[1] for scale in scales.tolist()]))
            scales = np.geomspace(scales[max(number - 1, 0)], scales[min(number + 1, STEPS - 1)], STEPS)
        scale = min(scales.tolist(), key=lambda scale: fitted(scale, most)[1])
        offset, left = fitted(scale, most)
        return InputMap(scale, offset), left

    (plain, left), (beside_noise, less) = best(0.0), best(LARGEST_S2)
    return beside_noise if less < left / 2 else plain


def _is_float(array: Array) -> bool:
    """Whether an array holds floating-point numbers."""
    return bool(np.issubdtype(array.dtype, np.floating))
