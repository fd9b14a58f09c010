"""Inputs where the user has none: made from the model, or, where that is impossible, images of another kind."""

from __future__ import annotations

from dataclasses import dataclass

from vsfix.graph_passes.batches import Batch, count_samples, cut_batches, prescribed_batch_size, samples_in
from vsfix.graph_passes.errors import MissingComponentError, ModelError
from vsfix.graph_passes.model_file import export_model

from .preparation import PreparedModel
from .proxy_images import proxy_batch
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
        are_proxy: they were not made from the model, and are unlike its training data.
        warnings: what a person should know.
    """

    batches: list[Batch]
    data: str
    are_proxy: bool
    warnings: tuple[str, ...]


def make_inputs(prepared: PreparedModel, config: RepairConfig) -> MadeInputs:
    """Synthetic inputs, or proxy images where the graph can't be differentiated or stores no statistics.

    Raises:
        MissingComponentError: torch is not here.
        ModelError: neither can be made.
    """
    try:
        from vsfix.trainers.onnx_call import UnsupportedOperatorError
        from vsfix.trainers.synthetic_inputs import SyntheticConfig, synthesize_inputs
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
        return _proxy(prepared, config, str(error))
    batches = _in_batches(made.inputs, prepared)
    left = made.total_loss / len(made.matching_loss)
    warnings: tuple[str, ...] = ()
    if left > POOR_MATCH:
        warnings = (f"the synthetic inputs are not much like the training data (loss {left:.2f} a BatchNorm)",)
    data = f"{NO_USER_DATA}{count_samples(batches)} synthetic inputs, made from the model"
    return MadeInputs(batches, data, False, warnings)


def _proxy(prepared: PreparedModel, config: RepairConfig, why: str) -> MadeInputs:
    """Handwritten digits, with a warning."""
    try:
        batches = _in_batches(proxy_batch(prepared.source, config.seed), prepared)
    except ModelError as error:
        raise ModelError(f"no inputs can be made from the model ({why}), and {error}") from error
    warning = (
        f"no inputs could be made from the model ({why}); handwritten digits took the place of the data, and are "
        "unlike it: check the result with --eval-data or on your own data"
    )
    return MadeInputs(batches, f"{NO_USER_DATA}{count_samples(batches)} proxy images", True, (warning,))


def _in_batches(inputs: Batch, prepared: PreparedModel) -> list[Batch]:
    """Inputs in batches that the graph takes; what does not fill a prescribed one is left out."""
    size = prescribed_batch_size(prepared.graph)
    if size is None:
        return list(cut_batches([inputs], MAX_BATCH))
    return [batch for batch in cut_batches([inputs], size) if samples_in(batch) == size]
