"""Loads ONNX Runtime so that it keeps to itself.

From 1.29 on it reports to its makers over the network, the names and hashes of models among other things, and puts an
identifier of the machine into the user's cache; loading it is enough for that. It reads the variable below when it is
loaded, and on Windows has a function of its own. Source: https://github.com/microsoft/onnxruntime/pull/27379.
"""

from __future__ import annotations

import os
from typing import Any

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
