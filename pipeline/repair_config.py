"""How to repair a model: the one set of choices that the command line, the demonstration and Python share."""

from __future__ import annotations

from dataclasses import dataclass

from vsfix.graph_passes.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.noise_insertion import parse_noise_option
from vsfix.graph_passes.precision import parse_precision

QUANTIZED = ("int8", "fp8")
TENSOR_FLOAT = "tf32"  # a float32 file, whose products the runtime may round
METHODS = ("auto", "exact", "stream", "paired", "analytic", "distill", "none")
NEED_DATA = ("exact", "stream", "paired")
NEED_NOISE = ("paired", "analytic", "distill")


@dataclass(frozen=True)
class RepairConfig:
    """How to repair.

    Attributes:
        method: one of `METHODS`; `auto` chooses, and the report says why; `none` keeps every statistic.
        layers: `auto` (the BatchNorms that noise reaches), `all`, or a glob over their names.
        noise: noise that the file does not show, each as `NODE=KIND:VALUE`.
        fold: fold BatchNorm into the linear layers around it.
        seed: of the noise, and of distilled inputs.
        repeats: runs with the noise on for each run with the noise off in `paired`.
        precision: half the relative width of a shift's interval at which `paired` stops taking samples.
        max_memory: bytes that the process may hold; activations beyond go to the disk.
        input_shape: of one input without the batch, for `distill` where the file does not say it.
        number_type: what the deployed graph computes in, as `--precision` names it; None to leave it as it is.

    Raises:
        InputError: an unknown method or number type, no repeats, a negative limit, or noise that can't be read.
    """

    method: str = "auto"
    layers: str = "auto"
    noise: tuple[str, ...] = ()
    fold: bool = True
    seed: int = 0
    repeats: int = 8
    precision: float = 0.03
    max_memory: int = DEFAULT_MAX_MEMORY
    input_shape: tuple[int, ...] | None = None
    number_type: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method '{self.method}': choose one of {', '.join(METHODS)}")
        if self.repeats < 1:
            raise InputError(f"repeats {self.repeats}: at least one run with the noise on is needed")
        if self.precision < 0:
            raise InputError(f"precision {self.precision}: must not be negative")
        if self.max_memory < 0:
            raise InputError(f"max-memory {self.max_memory}: must not be negative")
        if self.number_type is not None and self.number_type not in (*QUANTIZED, TENSOR_FLOAT):
            parse_precision(self.number_type)
        for text in self.noise:
            parse_noise_option(text)
