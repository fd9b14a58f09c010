"""What a repair changed, by the names that a PyTorch module has for it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm import BatchNorm, find_batch_norms, stored_values
from vsfix.graph_passes.inference import Array
from vsfix.graph_passes.model_file import import_graph

from .editing import Edited
from .preparation import PreparedModel

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def changed_parameters(prepared: PreparedModel, edited: Edited) -> dict[str, Array]:
    """Every parameter that a repair changed, by state_dict name.

    Args:
        prepared: the model, its graph edited.
        edited: what was changed.

    Returns:
        Of a BatchNorm its running statistics, float32, and its scale and shift where they changed; of a linear layer
        its weight and bias under the names of their initializers.
    """
    changed = {change.subject for change in edited.changes.changed}
    earlier = _constants(import_graph(prepared.source))
    arrays: dict[str, Array] = {}
    known: set[int] = set()
    for batch_norm in find_batch_norms(prepared.graph):
        known |= {id(constant) for constant in batch_norm.parameters}
        if batch_norm.name in changed:
            arrays |= _of_batch_norm(batch_norm, earlier)
    for name, constant in prepared.graph.tensors().items():
        if not isinstance(constant, gs.Constant) or id(constant) in known or name not in earlier:
            continue
        values = stored_values(constant)
        if values.shape == earlier[name].shape and values.tobytes() != earlier[name].tobytes():
            arrays[name] = values
    return arrays


def _constants(graph: gs.Graph) -> dict[str, Array]:
    """The values of every constant, by its name."""
    tensors = graph.tensors().items()
    return {name: stored_values(tensor) for name, tensor in tensors if isinstance(tensor, gs.Constant)}


def _of_batch_norm(batch_norm: BatchNorm, earlier: dict[str, Array]) -> dict[str, Array]:
    """The four parameters of one; scale and shift only where they are not those of the file."""
    arrays: dict[str, Array] = {}
    values = (batch_norm.gamma, batch_norm.beta, batch_norm.mean, batch_norm.variance)
    for kind, value, constant in zip(_BATCH_NORM, values, batch_norm.parameters, strict=True):
        stored = earlier.get(constant.name)
        statistic = kind.startswith("running")
        if statistic or stored is None or not np.array_equal(stored.reshape(-1), value.astype(stored.dtype)):
            arrays[f"{batch_norm.name}.{kind}"] = value.astype(np.float32)
    return arrays
