"""Noise that a file has lost, inferred from its statistics, and what is wrong where it is not the noise alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vsfix.graph_passes.ir.runtime import OpenModel
from vsfix.graph_passes.measurement.measurement import run_size
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.noise_inference.inference import infer_noise
from vsfix.graph_passes.noise_inference.verdict import NoiseInference, Verdict
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch, cut_batches, prescribed_batch_size
from vsfix.graph_passes.statistics.moments import Moments

from .fault import REESTIMATE, Fault, FaultKind, find_fault
from .preparation import PreparedModel

NAMED = 3  # insertion points that are spelled out


@dataclass(frozen=True)
class LostNoise:
    """The noise that the statistics tell of.

    Attributes:
        inference: the verdict with its numbers.
        fault: what is wrong beside noise; None where nothing is.
    """

    inference: NoiseInference
    fault: Fault | None = None

    @property
    def noise(self) -> Mapping[str, Noise]:
        """The noise by the tensor that it was on; empty unless it was found."""
        return self.inference.sites

    @property
    def sentence(self) -> str:
        """The verdict for a person."""
        return f"{self.inference.description} ({self.inference.confidence})"

    @property
    def doubts(self) -> tuple[str, ...]:
        """The note where noise was found that does not explain everything."""
        if not self.inference.is_partial:
            return ()
        return (
            "the noise is inferred and leaves a part of the stored statistics unexplained, so what R and the repair "
            "rest on may not be the noise of the training: say where it was with --noise, or check with --eval-data",
        )

    @property
    def question(self) -> str:
        """The note where no noise is certain, and something is off all the same; else empty."""
        if self.fault is not None:
            return self.fault.sentence
        verdict = self.inference.verdict
        if verdict is Verdict.AMBIGUOUS:
            return f"{self.sentence}; say which it was: {self._spelled_out()}"
        if verdict is Verdict.NOT_EXPLAINED:
            return f"{self.sentence}; if noise was lost, say it ({self._spelled_out()}); else {REESTIMATE}"
        return ""

    def _spelled_out(self) -> str:
        """The likeliest noise as `--noise` takes it, for this file."""
        said = [f"--noise '{site}={claim.noise}'" for claim in self.inference.claims for site in claim.sites]
        if not said:
            name = max(self.inference.residuals, key=lambda name: self.inference.residuals[name].after)
            return f"--noise '{name}=dropout:RATIO'"
        more = f" and {len(said) - NAMED} more" if len(said) > NAMED else ""
        return f"for the first, {' '.join(said[:NAMED])}{more}"


@stage("inferring the lost noise")
def infer_lost_noise(
    prepared: PreparedModel,
    batches: Sequence[Batch],
    open_model: OpenModel,
    *,
    max_memory: int,
    measured: Mapping[str, Moments] | None = None,
) -> LostNoise:
    """Infers the noise; where none is found, looks for another fault.

    Args:
        prepared: a model that marks no noise; not changed, see `PreparedModel.with_noise`.
        batches: some hundred samples like the training data.
        open_model: the runtime.
        max_memory: bytes that the process may hold; activations beyond go to the disk.
        measured: what `measure` finds in the graph as it is, where that is known already.

    Raises:
        DataError: data that no statistic can be compared with.
    """
    graph = prepared.graph
    size = 1 << (run_size(batches) - 1).bit_length()  # a power of 2 leaves no small rest of the usual batches
    cut = list(cut_batches(batches, prescribed_batch_size(graph) or size))
    inference = infer_noise(graph, cut, open_model, max_memory=max_memory, measured=measured)
    if inference.verdict is Verdict.FOUND:
        return LostNoise(inference)
    fault = find_fault(graph, cut, open_model, inference.residuals, max_memory=max_memory)
    if fault is None:
        return LostNoise(inference)
    beside = None
    if fault.input_map is not None:
        beside = infer_noise(graph, fault.input_map.apply(cut), open_model, max_memory=max_memory)
    elif fault.kind is FaultKind.UNSET and len(fault.batch_norms) < fault.total:
        beside = infer_noise(graph, cut, open_model, max_memory=max_memory, muted=fault.batch_norms)
    if beside is not None and beside.verdict is Verdict.FOUND:
        fault = replace(fault, beside=beside.description)
    return LostNoise(inference, fault)
