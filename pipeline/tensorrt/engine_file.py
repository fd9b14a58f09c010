"""An engine on disk: the plan, and the sidecar in which `vsfix build` says what it is.

A plan holds code, and TensorRT runs it as it is. So one is loaded only where the sidecar beside it gives its SHA-256,
or where the caller says that it is trusted. The sidecar also tells, before TensorRT is asked, whether an engine is for
this runtime, this version and this GPU: NVIDIA promises that an engine runs in the version that built it and in no
other, for TensorRT as for TensorRT-RTX.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsfix.graph_passes.errors import BuildError, InputError, ModelError
from vsfix.graph_passes.io.named_file import NO_SUCH_FILE, why_unreadable

from .library import CURRENT

_LARGEST_SIDECAR = 1 << 28  # bytes; it has a line or so for each layer
_ANEW = "build it anew with `vsfix build`"


@dataclass(frozen=True)
class EngineFile:
    """A plan that may be loaded.

    Attributes:
        path: where it was read.
        plan: what TensorRT deserializes.
        runtime: `tensorrt` or `tensorrt-rtx`; empty, as what follows, where there is no sidecar.
        version: of the runtime that built it.
        targets: compute capabilities as `sm89`; none where it is not known.
    """

    path: Path
    plan: bytes
    runtime: str = ""
    version: str = ""
    targets: tuple[str, ...] = ()

    def require_version(self, runtime: str, version: str) -> None:
        """Refuses an engine of another runtime or version.

        Raises:
            InputError: another runtime.
            BuildError: another version.
        """
        if self.runtime and self.runtime != runtime:
            raise InputError(f"{self.path}: is an engine of {self.runtime}; run it with --backend {self.runtime}")
        if self.version and self.version != version:
            raise BuildError(
                f"{self.path}: was built with {runtime} {self.version}, and {version} is here; an engine runs only in "
                f"the version that built it: {_ANEW}"
            )

    def require_target(self, capability: str) -> None:
        """Refuses an engine for other GPUs.

        Raises:
            BuildError: naming the GPUs that it is for.
        """
        if self.targets and capability not in self.targets:
            raise BuildError(
                f"{self.path}: was built for {', '.join(self.targets)}, and the GPU here is {capability}; {_ANEW}"
            )


def sidecar_path(engine: Path) -> Path:
    """Where the report of an engine stands: its name with `.json` appended."""
    return engine.with_name(engine.name + ".json")


def is_plan(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a plan: a letter that differs between runtimes, and `trt`."""
    return head[1:4] == b"trt"


def read_engine(path: Path, *, trust: bool = False) -> EngineFile:
    """Reads a plan and its sidecar.

    Args:
        path: the plan.
        trust: load it without a sidecar as well.

    Raises:
        ModelError: the plan or its sidecar is not there, can't be read, or is something else.
        BuildError: the plan is not the one that the sidecar was written for.
    """
    if (reason := why_unreadable(path)) is not None:
        raise ModelError(f"{path}: {reason}")
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror})") from error
    if not plan:
        raise ModelError(f"{path}: is empty; {_ANEW}")
    sidecar = sidecar_path(path)
    if sidecar.is_file():
        return _with_sidecar(path, plan)
    if not is_plan(plan):
        raise ModelError(f"{path}: is no engine of TensorRT; build one with `vsfix build`")
    if not trust:
        raise ModelError(
            f"{path}: {sidecar.name} is not beside it, and a plan is code that runs here; {_ANEW}, or, where you trust "
            "it, `vsfix verify --trust`, or trust=True in Python"
        )
    return EngineFile(path, plan)


def read_document(engine: Path) -> dict[str, Any]:
    """The content of an engine's sidecar, as it stands in the file.

    Raises:
        ModelError: there is none, or it is no JSON object.
    """
    path = sidecar_path(engine)
    if (reason := why_unreadable(path, _LARGEST_SIDECAR)) == NO_SUCH_FILE:
        raise ModelError(
            f"{path}: no such file, and an engine alone does not say what it is; keep both together, or {_ANEW}"
        )
    if reason is not None:
        raise ModelError(f"{path}: can't be read as a sidecar ({reason}); {_ANEW}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: can't be read as a sidecar ({error}); {_ANEW}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path}: can't be read as a sidecar (it is no JSON object); {_ANEW}")
    return document


@contextmanager
def reading_document(engine: Path) -> Iterator[None]:
    """Around what takes a sidecar apart: what is missing there, or of another kind, is the fault of the file.

    Raises:
        ModelError: names the entry.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(
            f"{sidecar_path(engine)}: says too little of the engine ({error}): another version of vsfix wrote it, or "
            f"none; {_ANEW}"
        ) from error


def require_digest(engine: Path, found: str, stated: str) -> None:
    """Refuses a plan that is not the one of its sidecar.

    Args:
        engine: the plan.
        found: its SHA-256.
        stated: that in the sidecar.

    Raises:
        BuildError: they differ.
    """
    if found != stated:
        raise BuildError(
            f"{engine}: is not the plan that {sidecar_path(engine).name} describes (its SHA-256 is another one): it "
            f"was changed or cut short, or belongs to another sidecar; {_ANEW}"
        )


def _with_sidecar(path: Path, plan: bytes) -> EngineFile:
    """The plan with what its sidecar says of it."""
    document = read_document(path)
    with reading_document(path):
        digest, runtime, version = (str(document["plan"]["sha256"]), str(document["runtime"]), str(document["version"]))
        gpu = document.get("gpu")
        targets = [str(gpu or target) if target == CURRENT else str(target) for target in document["targets"]]
    require_digest(path, hashlib.sha256(plan).hexdigest(), digest)
    return EngineFile(path, plan, runtime, version, () if CURRENT in targets else tuple(targets))
