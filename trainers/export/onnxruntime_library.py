"""ONNX Runtime: loaded so that it keeps to itself, and how near it comes to torch.

From 1.29 on it reports to its makers over the network, the names and hashes of models among other things, and puts an
identifier of the machine into the user's cache; loading it is enough for that. It reads the variable below when it is
loaded, and on Windows has a function of its own. Source: https://github.com/microsoft/onnxruntime/pull/27379.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vsfix.graph_passes.errors import CheckFailedError, MissingComponentError, first_line
from vsfix.graph_passes.ir.rounding import snr_db

if TYPE_CHECKING:
    import torch

TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """The module `onnxruntime`, with its reports off unless the user's environment says otherwise.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault(TELEMETRY_OFF, "1")
    import onnxruntime

    if os.environ[TELEMETRY_OFF] == "1":
        onnxruntime.disable_telemetry_events()
    return onnxruntime


@dataclass(frozen=True)
class Agreement:
    """The distance between two sets of outputs.

    Attributes:
        max_abs_error: the largest absolute difference; inf where an output is not finite.
        snr_db: as `rounding.snr_db`, torch's output the reference.
    """

    max_abs_error: float
    snr_db: float


def compare_with_torch(path: Path, references: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Agreement:
    """Runs a file on the inputs of `references` and compares it with their outputs.

    Args:
        path: a model of one input and one output.
        references: pairs of input and torch's output, each one batch.

    Returns:
        The worst of the batches.

    Raises:
        CheckFailedError: ONNX Runtime can't run the file, or its output has another shape.
        MissingComponentError: ONNX Runtime is not installed.
    """
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise MissingComponentError(
            "the check of an export needs ONNX Runtime; install it with: pip install 'vsfix[cpu]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    agreements = []
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        outputs = [session.run(None, {name: rows.numpy()})[0] for rows, _ in references]
    except Exception as error:  # ONNX Runtime's exceptions have no class of their own but this one
        raise CheckFailedError(f"ONNX Runtime can't run the exported model: {first_line(error)}") from error
    for (rows, reference), output in zip(references, outputs, strict=True):
        if output.shape != tuple(reference.shape):
            raise CheckFailedError(
                f"the exported model gives shape {output.shape} for {len(rows)} inputs, torch {tuple(reference.shape)}"
            )
        largest = float(np.abs(output.astype(np.float64) - reference.numpy()).max(initial=0))
        agreements.append(Agreement(largest if np.isfinite(largest) else np.inf, snr_db(reference.numpy(), output)))
    return Agreement(max(found.max_abs_error for found in agreements), min(found.snr_db for found in agreements))
