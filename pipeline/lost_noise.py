"""Noise that a file has lost: inferred from its statistics and put back as markers, so that it can be repaired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vsfix.graph_passes.batches import Batch, cut_batches, prescribed_batch_size
from vsfix.graph_passes.inference import OpenModel
from vsfix.graph_passes.noise_analysis import analyse_noise
from vsfix.graph_passes.noise_inference.inference import NoiseInference, Verdict, infer_noise
from vsfix.graph_passes.noise_insertion import InsertNoise

from .preparation import PreparedModel

BATCH_SIZE = 64  # the inference tries its places on a part of the set


@dataclass(frozen=True)
class LostNoise:
    """What the statistics say, and what was put back.

    Attributes:
        inference: the verdict with its numbers.
        changes: the markers that were inserted, one line each; none unless the noise was found.
    """

    inference: NoiseInference
    changes: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The verdict for a person."""
        return f"{self.inference.description} ({self.inference.confidence})"

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is to be said where the noise that was found does not explain everything."""
        if not self.inference.is_partial:
            return ()
        return (
            "the noise is inferred and leaves a part of the stored statistics unexplained, so what R and the repair "
            "rest on may not be the noise of the training: say where it was with --noise, or check with --eval-data",
        )


def is_lost(prepared: PreparedModel) -> bool:
    """Whether the file neither shows its noise nor vouches that it has none."""
    return not prepared.shows_its_noise and not analyse_noise(prepared.graph).sources


def recover_noise(
    prepared: PreparedModel, batches: Sequence[Batch], open_model: OpenModel, *, max_memory: int
) -> LostNoise:
    """Infers the noise; where it is found, markers are inserted into the prepared graph.

    Args:
        prepared: a model that marks no noise.
        batches: some hundred images like the training data.
        open_model: the runtime.
        max_memory: bytes that the process may hold; activations beyond go to the disk.

    Raises:
        DataError: data that no statistic can be compared with.
    """
    size = prescribed_batch_size(prepared.graph) or BATCH_SIZE
    inference = infer_noise(prepared.graph, list(cut_batches(batches, size)), open_model, max_memory=max_memory)
    if inference.verdict is not Verdict.FOUND:
        return LostNoise(inference, ())
    inserted = InsertNoise(inference.sites, tensors_only=True)(prepared.graph)
    return LostNoise(inference, tuple(f"{change.subject}: {change.action}" for change in inserted.changed))
