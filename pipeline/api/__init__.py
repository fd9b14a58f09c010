"""Find and repair the variance shift that Dropout leaves in BatchNorm, on the ONNX file that you deploy.

What goes wrong is raised as a `VsfixError` of one line. Nothing heavy is loaded before one of the names is asked for
(PEP 562).

Modules: optimization.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsfix.graph_passes.errors import VsfixError

    from .optimization import Optimization, RefusedRepairError, optimize

    __version__: str

_MODULES = {
    "optimize": "optimization",
    "Optimization": "optimization",
    "RefusedRepairError": "optimization",
    "VsfixError": "graph_passes.errors",
}
__all__ = ["Optimization", "RefusedRepairError", "VsfixError", "__version__", "optimize"]


def __getattr__(name: str) -> Any:
    """Loads the module of a public name when the name is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("vsfix")
    elif name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'vsfix' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
