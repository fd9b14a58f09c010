"""What the GPU benchmark measures, in order: numbers against PyTorch, latencies, training, what Uout costs in it.

A table without latencies is worth more than the reverse, and one network in float32 more than none in all precisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from vsfix.pipeline.comparison.tolerance import TOLERANCES

FORMS = ("repaired", "original")
ENGINES = ("tensorrt", "tensorrt-rtx")
PRECISIONS = {"tensorrt": ("fp32", "fp16", "tf32"), "tensorrt-rtx": ("fp32", "fp16", "tf32"), "other": ("fp32", "fp16")}
BATCHES = (1, 64)
MAX_LATENCY_RATIO = 1.0
SHARES = {"numbers": 0.55, "latency": 0.8, "training": 0.92, "uout": 1.0}  # of the time that there is, added up
Found = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One thing to measure.

    Attributes:
        kind: `numbers` of one network in one form, `latency` of both forms at one batch size, `training` or `uout`.
    """

    kind: str
    network: str = ""
    backend: str = ""
    precision: str = ""
    form: str = ""
    batch: int = 0

    def __str__(self) -> str:
        if self.kind == "training":
            return "training: images per second"
        if self.kind == "uout":
            return "uout: a step beside one with nn.Dropout"
        what = self.form if self.kind == "numbers" else f"original and repaired, batch {self.batch}"
        return f"{self.kind}: {self.network}, {what}, {self.backend} {self.precision}"


def plan(kit: Path, backends: Sequence[str]) -> list[Step]:
    """Every step, in the order in which they are taken."""
    networks = networks_of(kit)
    pairs = [(backend, precision) for backend in backends for precision in PRECISIONS.get(backend, PRECISIONS["other"])]
    pairs.sort(key=lambda pair: ("fp32", "fp16", "tf32").index(pair[1]))
    numbers = [
        Step("numbers", network, backend, precision, form=form)
        for (backend, precision), network, form in product(pairs, networks, FORMS)
    ]
    latencies = [
        Step("latency", network, backend, precision, batch=batch)
        for (backend, precision), batch, network in product(pairs, BATCHES, networks)
    ]
    return [*numbers, *latencies, Step("training"), Step("uout")]


def networks_of(kit: Path) -> list[str]:
    """The networks of a kit."""
    return sorted(path.parent.name for path in kit.glob("*/checkpoint.pt"))


def model_path(kit: Path, network: str, form: str, precision: str) -> Path:
    """The ONNX file of a network in a form and the types of a precision."""
    return kit / network / f"{form}{'-fp16' if precision == 'fp16' else ''}.onnx"


def missed(step: Step, found: Found) -> list[str]:
    """The targets that a step misses."""
    if "error" in found:
        return [f"{step}: {found['error']}"]
    if step.kind in ("training", "uout"):
        return [f"{step.kind}: {miss}" for miss in found["misses"]]
    if step.kind == "latency":
        low, high = found["interval"]
        worse = low > MAX_LATENCY_RATIO
        return [f"{step}: repaired/original {found['ratio']:.3f} ({low:.3f} to {high:.3f})"] if worse else []
    wanted = TOLERANCES[step.precision]
    misses = []
    if not found["snr_db"] >= wanted.min_snr_db:
        misses.append(f"{step}: SNR {found['snr_db']:.1f} dB, wanted {wanted.min_snr_db:g}")
    if not found["agreement"] >= wanted.min_agreement:
        misses.append(f"{step}: agreement {found['agreement']:.4%}, wanted {wanted.min_agreement:.2%}")
    if not abs(found["top1"] - found["top1_torch"]) <= wanted.max_accuracy_loss + 1e-9:
        misses.append(f"{step}: top-1 {found['top1']:.2f} %, torch {found['top1_torch']:.2f} %")
    return misses
