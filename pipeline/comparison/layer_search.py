"""Where two models part: their inner tensors side by side, in the order in which they are computed.

A tensor is looked at where both models have one of that name: folding, cleaning and casting keep the names of what they
leave. What a runtime gives out it can't fuse away, so that tapped models may differ less than those that ran.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from vsfix.graph_passes.errors import DataError, VsfixError
from vsfix.graph_passes.ir.runtime import Array, OpenModel
from vsfix.graph_passes.measurement.tapped_tensors import InnerTensor, inner_tensors, tap_tensors
from vsfix.graph_passes.progress import stage

from .tensor_comparison import comparable, compare_tensors

_TENSORS_AT_ONCE = 48  # outputs of one run: their memory, and how much of the fusion they prevent


@dataclass(frozen=True)
class LayerRow:
    """One tensor of both models.

    Attributes:
        tensor: its name.
        node: that writes it in the candidate.
        operator: of that node.
        snr_db: signal to noise against the reference, in dB.
        max_rel: the largest error over the largest magnitude.
    """

    tensor: str
    node: str
    operator: str
    snr_db: float
    max_rel: float


@dataclass(frozen=True)
class LayerSearch:
    """The result of the search for layers.

    Attributes:
        reference: what the layers were held against.
        samples: how many were run.
        rows: the tensors that both models have, in the candidate's order.
        first: the first below the threshold; None where no tensor is.
        worst: the one with the smallest SNR; None where there are no rows.
        reason: why nothing was found; empty where `first` says where.
    """

    reference: str
    samples: int
    rows: tuple[LayerRow, ...]
    first: LayerRow | None
    worst: LayerRow | None
    reason: str = ""

    def __str__(self) -> str:
        if self.first is None or self.worst is None:
            return f"layers: {self.reason}"
        return f"layers: the first that differs is {_words(self.first)}, the worst {_words(self.worst)}"


@dataclass(frozen=True)
class TappableModel:
    """A model whose inner tensors can be read.

    Attributes:
        name: in messages.
        model: its graph.
        open_model: what runs it.
    """

    name: str
    model: onnx.ModelProto
    open_model: OpenModel


@stage("looking for the layer that differs")
def search_layers(
    reference: TappableModel, candidate: TappableModel, inputs: Mapping[str, Array], min_snr_db: float
) -> LayerSearch:
    """Finds the first inner tensor of `candidate` that differs from the reference's, and the worst one.

    Args:
        reference: what is right.
        candidate: the model that differs.
        inputs: a few samples, by the names of the inputs of both models.
        min_snr_db: what counts as different, in dB.
    """
    samples = len(next(iter(inputs.values())))
    known = {tensor.name for tensor in inner_tensors(reference.model)}
    common = [tensor for tensor in inner_tensors(candidate.model) if tensor.name in known]
    rows: list[LayerRow] = []
    try:
        for start in range(0, len(common), _TENSORS_AT_ONCE):
            rows += _compare(common[start : start + _TENSORS_AT_ONCE], reference, candidate, inputs)
    except VsfixError as error:
        return LayerSearch(reference.name, samples, tuple(rows), None, None, f"the tapped models do not run: {error}")
    worst = min(rows, key=lambda row: row.snr_db, default=None)
    first = next((row for row in rows if not row.snr_db >= min_snr_db), None)
    return LayerSearch(reference.name, samples, tuple(rows), first, worst, "" if first else _reason(rows, min_snr_db))


def _compare(
    tensors: Sequence[InnerTensor],
    reference: TappableModel,
    candidate: TappableModel,
    inputs: Mapping[str, Array],
) -> list[LayerRow]:
    """A row for each of these tensors that has the same shape in both."""
    names = {tensor.name for tensor in tensors}
    expected, found = (_run(side, names, inputs) for side in (reference, candidate))
    rows = []
    for tensor in tensors:
        try:
            comparison = compare_tensors(*comparable(expected[tensor.name], found[tensor.name]))
        except DataError:  # another shape, or a reference that is itself not finite: not the same thing
            continue
        rows.append(LayerRow(tensor.name, tensor.node, tensor.operator, comparison.snr_db, comparison.max_rel))
    return rows


def _run(side: TappableModel, names: set[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """These tensors of one model."""
    with side.open_model(tap_tensors(side.model, names)) as runner:
        return runner.run(inputs)


def _reason(rows: Sequence[LayerRow], min_snr_db: float) -> str:
    """Why no layer differs."""
    if not rows:
        return "the models have no tensor in common to compare"
    return (
        f"with its inner tensors given out none of {len(rows)} is below {min_snr_db:g} dB: the difference comes from "
        "what the runtime fuses, or lies in what the models do not have in common"
    )


def _words(row: LayerRow) -> str:
    """A row in a sentence."""
    return f"'{row.node}' ({row.operator}, {row.snr_db:.1f} dB)"
