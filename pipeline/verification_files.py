"""What `vsfix verify` does: opens a model and its reference, finds inputs that both take, and compares."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.inference import Runner
from vsfix.graph_passes.model_file import read_model
from vsfix.trainers.preprocessing import Preprocessing

from .backends.opening import checkpoint_file, is_checkpoint, open_checkpoint, open_runner
from .calibration import Samples, load_samples, model_input_names, read_preprocessing
from .npz_file import read_npz
from .random_inputs import draw_inputs, stated_shape
from .verification import Tolerance, Verification, verify

RANDOM_SAMPLES = 256
_CHECKPOINT_INPUT = "input"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerificationConfig:
    """How to verify.

    Attributes:
        backends: where the model runs, each judged on its own.
        data: as `--data` takes it; None for random numbers.
        split: part of a named data set.
        samples: how many to take; None for all, or 256 random ones.
        batch_size: samples per run.
        statistics: an `.npz` file with running statistics for a reference in torch; None for its own.
        seed: of the choice of samples, or of the random ones.
        tolerance: what each backend must reach.
    """

    backends: Sequence[str] = ("onnxruntime",)
    data: str | None = None
    split: str = "test"
    samples: int | None = None
    batch_size: int = 256
    statistics: Path | None = None
    seed: int = 0
    tolerance: Tolerance = field(default_factory=Tolerance)


@dataclass(frozen=True)
class _Description:
    """What is known about the input of a model file."""

    input_names: tuple[str, ...] | None  # a checkpoint has no names
    input_shapes: tuple[tuple[int, ...] | None, ...]  # without the batch axis; None where the file does not say
    preprocessing: Preprocessing | None


def verify_files(model: Path, against: Path, config: VerificationConfig) -> Verification:
    """Compares a model file with a reference file.

    Args:
        model: an ONNX file, or a checkpoint for the backend `torch`.
        against: a vsfix checkpoint, which runs in torch, or an ONNX file, which runs in ONNX Runtime.
        config: how.

    Raises:
        InputError: files, data or statistics that can't be used; two models with different inputs.
        MissingComponentError: a backend is not here.
    """
    candidate, reference = _describe(model), _describe(against)
    names = candidate.input_names or reference.input_names or (_CHECKPOINT_INPUT,)
    _require_same_inputs(model, names, against, reference.input_names)
    samples = _samples(candidate, reference, names, config)

    def candidates() -> Iterator[Runner]:
        for backend in config.backends:
            with open_runner(backend, model, input_name=names[0]) as runner:
                yield runner

    with _open_reference(against, names[0], config.statistics) as runner:
        return verify(
            runner,
            candidates(),
            samples,
            tolerance=config.tolerance,
            batch_size=config.batch_size,
            random=config.data is None,
        )


def _describe(path: Path) -> _Description:
    """Reads what a file says about its input."""
    if is_checkpoint(path):
        from vsfix.trainers.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(checkpoint_file(path))
        network = checkpoint.network
        return _Description(None, ((network.in_channels, *network.image_size),), checkpoint.preprocessing)
    model = read_model(path)
    names = tuple(model_input_names(model))
    if not names:
        raise InputError(f"{path}: the model has no input; there is nothing to compare on")
    return _Description(names, tuple(stated_shape(model, name) for name in names), read_preprocessing(model))


def _require_same_inputs(model: Path, names: tuple[str, ...], against: Path, reference: tuple[str, ...] | None) -> None:
    """Both models are fed the same arrays."""
    if reference is None and len(names) > 1:
        raise InputError(f"{model}: has the inputs {', '.join(names)}, but {against} takes one image")
    if reference is not None and set(reference) != set(names):
        raise InputError(
            f"{model}: has the inputs {', '.join(names)}, but {against} has {', '.join(reference)}; give two models "
            "that take the same inputs"
        )


def _samples(
    candidate: _Description, reference: _Description, names: tuple[str, ...], config: VerificationConfig
) -> Samples:
    """The inputs: the named data, or random numbers."""
    if config.data is None:
        shapes = candidate.input_shapes if candidate.input_names else reference.input_shapes
        inputs = draw_inputs(names, shapes, config.samples or RANDOM_SAMPLES, config.seed)
        return Samples("random normal numbers", inputs)
    ours, theirs = candidate.preprocessing, reference.preprocessing
    if ours is not None and theirs is not None and ours != theirs:
        _logger.warning("the model and its reference state different preprocessing; that of the model is used")
    return load_samples(
        config.data,
        split=config.split,
        preprocessing=ours or theirs,
        input_names=names,
        samples=config.samples,
        seed=config.seed,
    )


def _open_reference(path: Path, input_name: str, statistics: Path | None) -> Runner:
    """The reference: torch for a checkpoint, ONNX Runtime for an ONNX file."""
    if not is_checkpoint(path):
        if statistics is not None:
            raise InputError(f"--statistics {statistics}: goes with a checkpoint as the reference, not with {path}")
        return open_runner("onnxruntime", path)
    from vsfix.trainers.checkpoint import load_checkpoint

    arrays = None if statistics is None else read_npz(statistics)
    return open_checkpoint(load_checkpoint(checkpoint_file(path)), input_name=input_name, statistics=arrays)
