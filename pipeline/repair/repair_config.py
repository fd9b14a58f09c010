"""How to repair a model: the one set of choices that the command line, the demonstration and Python share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.measurement.activation_cache import DEFAULT_MAX_MEMORY
from vsfix.graph_passes.noise.insertion import parse_noise_option
from vsfix.graph_passes.noise_average.divergence import Meaning

QUANTIZED = ("int8", "fp8")
NARROW = ("fp16", "bf16", *QUANTIZED)
TENSOR_FLOAT = "tf32"  # a float32 file, whose products the runtime may round
PRECISIONS = ("fp32", TENSOR_FLOAT, "fp16", "bf16", *QUANTIZED)
METHODS = ("auto", "match", "paired", "exact", "analytic", "none")
AVERAGING = ("auto", "match")  # bring the network to its noise-averaged one; the others estimate statistics
NEED_DATA = ("exact", "paired")
NEED_NOISE = ("match", "paired", "analytic")
MEANINGS = tuple(meaning.value for meaning in Meaning)
GONE = {
    "distill": "it is no method any more: without --data the inputs are made from the model, whatever the method",
    "stream": "it is gone; take exact, which is one forward of the data too",
}


@dataclass(frozen=True)
class RepairConfig:
    """How to repair.

    Attributes:
        method: one of `METHODS`; `auto` matches where the file is far from its noise-averaged network, and the report
            says why; `match` matches in any case; `none` keeps every parameter.
        layers: `auto` (the BatchNorms that noise reaches), `all`, or a glob over their names.
        noise: noise that the file does not show, each as `NODE=KIND:VALUE`.
        fold: fold BatchNorm into the linear layers around it.
        refine: refine the match end to end in torch; None where it is worth its time.
        output_kinds: what outputs mean, one of `MEANINGS`, by name; the others are recognised.
        seed: of the noise, and of synthetic inputs.
        repeats: runs with the noise on for each run with the noise off in `paired`.
        max_interval_width: half the relative width of a shift's interval at which `paired` stops taking samples.
        max_memory: bytes that the process may hold; activations beyond go to the disk.
        input_shape: of one input without the batch, for synthetic inputs where the file does not say it.
        precision: what the deployed graph computes in, as `--precision` names it; None to leave it as it is.
        keep_metric: the share of the metric that a narrow precision is to keep, in (0, 1]; the layers that cost most
            stay in float32 for it. None to cast every layer.

    Raises:
        InputError: an unknown method or precision, no repeats, a negative limit, or noise that can't be read;
            a share to be kept out of range, or without a narrow precision.
    """

    method: str = "auto"
    layers: str = "auto"
    noise: tuple[str, ...] = ()
    fold: bool = True
    refine: bool | None = None
    output_kinds: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    repeats: int = 8
    max_interval_width: float = 0.03
    max_memory: int = DEFAULT_MAX_MEMORY
    input_shape: tuple[int, ...] | None = None
    precision: str | None = None
    keep_metric: float | None = None

    def __post_init__(self) -> None:
        if self.method in GONE:
            raise InputError(f"method '{self.method}': {GONE[self.method]}")
        if self.method not in METHODS:
            raise InputError(f"method '{self.method}': choose one of {', '.join(METHODS)}")
        for name, meaning in self.output_kinds.items():
            if meaning not in MEANINGS:
                raise InputError(f"output '{name}': '{meaning}' is none of {', '.join(MEANINGS)}")
        if self.repeats < 1:
            raise InputError(f"repeats {self.repeats}: at least one run with the noise on is needed")
        if self.max_interval_width < 0:
            raise InputError(f"max_interval_width {self.max_interval_width}: must not be negative")
        if self.max_memory < 0:
            raise InputError(f"max-memory {self.max_memory}: must not be negative")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise InputError(f"precision '{self.precision}': choose one of {', '.join(PRECISIONS)}")
        if self.keep_metric is not None:
            if not 0 < self.keep_metric <= 1:
                raise InputError(f"keep-metric {self.keep_metric}: must be a share above 0 and up to 1, as 0.99")
            if self.precision not in NARROW:
                given = "no --precision" if self.precision is None else f"--precision {self.precision}"
                raise InputError(f"--keep-metric: {given} narrows no layer; give --precision {'|'.join(NARROW)}")
        for text in self.noise:
            parse_noise_option(text)
