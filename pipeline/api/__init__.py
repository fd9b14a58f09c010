"""Find and repair the variance shift that Dropout leaves in BatchNorm, on the ONNX file that you deploy.

    import vsfix

    found = vsfix.optimize("model.onnx", images)
    print(found)
    found.save("repaired.onnx")

A function for each command, and each result a dataclass: `print` shows what the terminal shows, `to_dict` and `to_json`
what `--json` writes, `to_html` writes the page, `save` the file. What goes wrong is raised as a `VsfixError` of one
line. Nothing heavy is loaded before one of the names is asked for (PEP 562).

Modules: inspecting, optimization, exporting, verifying, benchmarking, engines (one for each function and its result),
torch and nn (for modules of PyTorch), results (what all results share), arguments (models and options as Python gives
them).
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsfix.graph_passes.errors import VsfixError

    from . import nn as nn
    from . import torch as torch
    from .benchmarking import Benchmark, benchmark
    from .engines import Engine, build
    from .exporting import Export, export
    from .inspecting import Inspection, inspect
    from .optimization import Optimization, RefusedRepairError, optimize
    from .verifying import Verification, verify

    __version__: str

_ROOMS = ("nn", "torch")  # in no __all__: a star import must not put another torch before torch
_MODULES = {
    "benchmark": "benchmarking",
    "Benchmark": "benchmarking",
    "build": "engines",
    "Engine": "engines",
    "export": "exporting",
    "Export": "exporting",
    "inspect": "inspecting",
    "Inspection": "inspecting",
    "optimize": "optimization",
    "Optimization": "optimization",
    "RefusedRepairError": "optimization",
    "verify": "verifying",
    "Verification": "verifying",
    "VsfixError": "graph_passes.errors",
}
__all__ = [
    "Benchmark",
    "Engine",
    "Export",
    "Inspection",
    "Optimization",
    "RefusedRepairError",
    "Verification",
    "VsfixError",
    "__version__",
    "benchmark",
    "build",
    "export",
    "inspect",
    "optimize",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Loads the module of a public name when the name is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("vsfix")
    elif name in _MODULES:
        value = getattr(_load(_MODULES[name]), name)
    elif name in _ROOMS:
        value = _load(name)
    else:
        raise AttributeError(f"module 'vsfix' has no attribute '{name}'")
    globals()[name] = value
    return value


def _load(name: str) -> ModuleType:
    """One of the modules; a package that is not installed becomes a MissingComponentError."""
    from vsfix.graph_passes.progress import stage

    try:
        with stage("loading libraries"):
            return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        from vsfix.graph_passes.errors import missing_package

        raise missing_package(error) or error from None


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, *_ROOMS])
