"""Inputs where the user has none: made from the model."""

from __future__ import annotations

from dataclasses import dataclass

from vsfix.graph_passes.errors import MissingComponentError, ModelError
from vsfix.graph_passes.io.model_file import export_model
from vsfix.graph_passes.statistics.batches import Batch, count_samples, cut_batches, prescribed_batch_size, samples_in
from vsfix.pipeline.inspection.fault import never_set
from vsfix.pipeline.inspection.preparation import PreparedModel

from .repair_config import RepairConfig

NO_USER_DATA = "no data of the user: "
MAX_BATCH = 256
POOR_MATCH = 0.1  # matching loss of one BatchNorm; those of ordinary networks end at a hundredth of that


@dataclass(frozen=True)
class MadeInputs:
    """Inputs that nobody gave.

    Attributes:
        batches: in sizes that the graph takes.
        data: what they are, in words.
        warnings: what a person should know.
    """

    batches: list[Batch]
    data: str
    warnings: tuple[str, ...]


def make_inputs(prepared: PreparedModel, config: RepairConfig) -> MadeInputs:
    """Inputs that give each BatchNorm the statistics that it stores.

    Raises:
        MissingComponentError: torch is not here.
        ModelError: none can be made, as where the graph can't be differentiated or stores no statistics.
    """
    try:
        from vsfix.trainers.differentiable.onnx_call import UnsupportedOperatorError
        from vsfix.trainers.differentiable.synthetic_inputs import SyntheticConfig, synthesize_inputs
    except ImportError:
        raise MissingComponentError(
            "without --data the inputs are made from the model, which needs torch; run: pip install 'vsfix[train]', or "
            "give --data, or take --method analytic"
        ) from None
    model = export_model(prepared.graph, prepared.source)
    if all(node.op_type != "BatchNormalization" for node in model.graph.node):
        raise ModelError(
            "the model has no BatchNorm, so nothing in it says what its training data were: give --data; some inputs "
            "like those of the training are enough, without labels"
        )
    try:
        made = synthesize_inputs(model, SyntheticConfig(seed=config.seed, input_shape=config.input_shape))
    except UnsupportedOperatorError as error:
        raise ModelError(
            f"no inputs can be made from the model ({error}): give --data; some inputs like those of the training are "
            "enough, without labels"
        ) from error
    batches = _in_batches(made.inputs, prepared)
    left = made.total_loss / len(made.matching_loss)
    warnings: tuple[str, ...] = ()
    if left > POOR_MATCH:
        warnings = (f"the synthetic inputs are not much like the training data (loss {left:.2f} a BatchNorm)",)
    if unset := never_set(prepared.graph):
        warnings += (unset,)
    data = f"{NO_USER_DATA}{count_samples(batches)} synthetic inputs, made from the model"
    return MadeInputs(batches, data, warnings)


def _in_batches(inputs: Batch, prepared: PreparedModel) -> list[Batch]:
    """Inputs in batches that the graph takes; what does not fill a prescribed one is left out."""
    size = prescribed_batch_size(prepared.graph)
    if size is None:
        return list(cut_batches([inputs], MAX_BATCH))
    return [batch for batch in cut_batches([inputs], size) if samples_in(batch) == size]
