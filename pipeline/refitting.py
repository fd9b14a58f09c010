"""What `vsfix refit` does: the weights of a repaired model into an engine of the same network, without a build."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from vsfix.graph_passes.atomic_file import atomic_paths
from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.external_data import external_data_files
from vsfix.graph_passes.model_file import read_metadata, read_model
from vsfix.graph_passes.structure_digest import initializer_values

from .backends.engine_file import sidecar_path
from .backends.tensorrt_library import open_library
from .console import json_text
from .engine_sidecar import EngineSidecar, read_sidecar
from .environment import describe_environment
from .file_description import describe_onnx_file, describe_plan
from .output_file import require_output
from .refit_form import RefitRecord, record_refit, take_refit_form

_SHOWN = 3


@dataclass(frozen=True)
class RefitReport:
    """What became of an engine.

    Attributes:
        engine: the engine that was refitted; not changed.
        output: the new engine.
        changed: the weights that differ from those that it held.
        also_set: weights that it wanted again because they are fused with others.
        kept: how many refittable weights were equal.
        document: the sidecar of the new engine.
    """

    engine: Path
    output: Path
    changed: tuple[str, ...]
    also_set: tuple[str, ...]
    kept: int
    document: dict[str, Any]


def refit(engine: Path, model_path: Path, output: Path, *, force: bool = False) -> RefitReport:
    """Writes an engine with the weights of a model, and its sidecar beside it; both appear or neither.

    Args:
        engine: built with `--refit`, its sidecar beside it; never written.
        model_path: an ONNX file of the same network, repaired or not, BatchNorms folded or not; never written.
        output: the new plan.
        force: existing outputs may be replaced.

    Raises:
        InputError, ModelError, OutputExistsError: a file that can't be used as it is, another network, no new weight.
        MissingComponentError: TensorRT or a GPU is missing.
        BuildError: the plan is not that of its sidecar, or TensorRT refuses the refit.
    """
    sources = [engine, sidecar_path(engine), model_path, *external_data_files(model_path)]
    for path in (output, sidecar_path(output)):
        require_output(path, force=force, inputs=sources)
    sidecar = read_sidecar(engine)
    held = _require_refittable(sidecar)
    model = read_model(model_path)
    form = take_refit_form(model_path, model)
    offered = record_refit(form, held.marked)
    _require_same_network(sidecar, model_path, held, offered)
    changed = {name: form.weights[name] for name, new in offered.weights.items() if new != held.weights[name]}
    if not changed:
        raise InputError(f"{model_path}: has the weights that {engine} holds already: there is nothing to refit")
    library = open_library(sidecar.runtime)
    _require_version(sidecar, library.version)
    known = initializer_values(form.model, {tensor.name for tensor in form.model.graph.initializer})
    plan, also_set = library.refit(engine.read_bytes(), changed, known)
    document = _new_sidecar(sidecar, model_path, model, output, plan) | {"refit": asdict(offered)}
    document["refits"] = [*sidecar.document.get("refits", ()), _entry(sidecar, tuple(changed), also_set)]
    with atomic_paths([output, sidecar_path(output)], force=force) as (new_plan, new_sidecar):
        new_plan.write_bytes(plan)
        new_sidecar.write_text(json_text(document) + "\n", encoding="utf-8")
    return RefitReport(engine, output, tuple(changed), also_set, len(form.weights) - len(changed), document)


def _require_refittable(sidecar: EngineSidecar) -> RefitRecord:
    """Refuses an engine that can't be given new weights."""
    if sidecar.refit is None:
        raise InputError(
            f"{sidecar.engine}: was built without --refit, so that its weights are fixed; build it again with "
            "`vsfix build --refit`"
        )
    return sidecar.refit


def _require_same_network(sidecar: EngineSidecar, path: Path, held: RefitRecord, offered: RefitRecord) -> None:
    """Refuses a model that differs from that of the engine in more than the values of its refittable weights."""
    old, new = held.weights, offered.weights
    reason = ""
    if missing := [name for name in old if name not in new]:
        reason = f"it lacks {_names(missing)}"
    elif surplus := [name for name in new if name not in old]:
        reason = f"the engine has no {_names(surplus)}"
    elif reshaped := [name for name in old if old[name].shape != new[name].shape or old[name].type != new[name].type]:
        name = reshaped[0]
        reason = f"'{name}' is {new[name].type} {new[name].shape}, in the engine {old[name].type} {old[name].shape}"
    elif held.structure != offered.structure:
        reason = "its nodes, their names, or weights that can't be refitted are others"
    if reason:
        raise InputError(
            f"{path}: is not the network that {sidecar.engine} was built from: {reason}; refit with a file that "
            "`vsfix optimize` made of the same model in the same precision, or build a new engine"
        )


def _require_version(sidecar: EngineSidecar, version: str) -> None:
    """Refuses another TensorRT than the one that built the engine: it would not load it."""
    if version != sidecar.version:
        raise InputError(
            f"{sidecar.engine}: was built with {sidecar.runtime} {sidecar.version}, here is {version}; refit it where "
            "it was built, or build a new engine"
        )


def _names(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more weights" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more


def _new_sidecar(
    sidecar: EngineSidecar, model_path: Path, model: onnx.ModelProto, output: Path, plan: bytes
) -> dict[str, Any]:
    """The sidecar of the engine that was refitted, with what is no longer so replaced."""
    unread = {"status": "SKIP", "largest_error": 0.0, "rows": []}  # the weights that were read back are gone
    return dict(sidecar.document) | {
        "model": describe_onnx_file(model_path),
        "plan": describe_plan(output, plan),
        "metadata": read_metadata(model),
        "read_back": unread,
        "environment": describe_environment(),
    }


def _entry(sidecar: EngineSidecar, changed: tuple[str, ...], also_set: tuple[str, ...]) -> dict[str, Any]:
    """One line of the engine's history: what it was before, and what was set."""
    return {
        "parent": {key: sidecar.document.get(key) for key in ("plan", "model", "environment")},
        "changed": list(changed),
        "also_set": list(also_set),
    }
