"""ONNX Runtime: loaded so that it keeps to itself, and how near it comes to torch.

From 1.29 on it reports to its makers over the network, the names and hashes of models among other things, and puts an
identifier of the machine into the user's cache; loading it is enough for that. It reads the variable below when it is
loaded, and on Windows has a function of its own. Source: https://github.com/microsoft/onnxruntime/pull/27379.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsfix.graph_passes.errors import CheckFailedError, MissingComponentError, first_line
from vsfix.graph_passes.ir.rounding import snr_db
from vsfix.graph_passes.ir.runtime import Array

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
    """The distance of an output of a file from torch's.

    Attributes:
        output: its name.
        max_abs_error: the largest absolute difference; inf where an output is not finite.
        snr_db: as `rounding.snr_db`, torch's output the reference.
    """

    output: str
    max_abs_error: float
    snr_db: float


def compare_with_torch(
    path: Path, references: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]
) -> tuple[Agreement, ...]:
    """Runs a file on the inputs of `references` and compares it with their outputs.

    Args:
        path: a model.
        references: pairs of inputs and torch's outputs by name, each one run; the outputs in the order of the model.

    Returns:
        For each output the worst of the runs.

    Raises:
        CheckFailedError: ONNX Runtime can't run the file, or an output has another shape or type.
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
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        taken = {each.name for each in session.get_inputs()}
        runs = [
            session.run(None, {name: rows for name, rows in inputs.items() if name in taken})
            for inputs, _ in references
        ]
    except Exception as error:  # ONNX Runtime's exceptions have no class of their own but this one
        raise CheckFailedError(f"ONNX Runtime can't run the exported model: {first_line(error)}") from error
    worst: dict[str, Agreement] = {}
    for (inputs, expected), found in zip(references, runs, strict=True):
        for (name, reference), output in zip(expected.items(), found, strict=True):
            if output.shape != reference.shape:
                sizes = ", ".join(str(array.shape) for array in inputs.values())
                raise CheckFailedError(
                    f"the exported model gives shape {output.shape} for inputs of {sizes}, torch {reference.shape}"
                )
            largest = float(np.abs(output.astype(np.float64) - reference).max(initial=0))
            largest = largest if np.isfinite(largest) else np.inf
            before = worst.get(name, Agreement(name, 0.0, np.inf))
            worst[name] = Agreement(
                name, max(before.max_abs_error, largest), min(before.snr_db, snr_db(reference, output))
            )
    return tuple(worst.values())
