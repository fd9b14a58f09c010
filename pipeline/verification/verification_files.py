"""Verification of files and modules: opens a model and its reference, finds inputs that both take, compares."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.ir.runtime import Array, Runner
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.backends.model_kind import model_kind
from vsfix.pipeline.backends.opening import open_checkpoint, open_module, open_runner
from vsfix.pipeline.comparison.layer_search import LayerSearch
from vsfix.pipeline.comparison.tolerance import GivenTolerance
from vsfix.pipeline.data.data_forms import Data
from vsfix.pipeline.data.loading import load_samples
from vsfix.pipeline.data.random_inputs import draw_inputs
from vsfix.pipeline.data.samples import Samples
from vsfix.pipeline.tensorrt.engine_file import sidecar_path
from vsfix.trainers.data.npz_file import read_npz

from .model_description import (
    ModelDescription,
    describe_model,
    describe_module,
    describe_trusted_engine,
    name_step,
)
from .shared_inputs import require_same_inputs, shared_batch_size, whole_batches
from .tappable import search_files
from .verification import Stage, Verification, verify

if TYPE_CHECKING:
    from torch import nn

RANDOM_SAMPLES = 256
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerificationConfig:
    """How to verify.

    Attributes:
        backends: where the model runs, each judged on its own; none for the usual one of its kind of file.
        reference_backend: where the reference runs; None for the usual one.
        via: files between the reference and the model, in the order in which one came from the other.
        data: see `load_samples`; None for random numbers.
        split: part of a named data set.
        samples: how many to take; None for all, or 256 random ones.
        batch_size: samples per run.
        statistics: running statistics by state_dict name, or an `.npz` file with them, for a reference in torch; None
            for its own.
        reference_name: what results call a module of PyTorch.
        seed: of the choice of samples, or of the random ones.
        tolerance: what each backend must reach, where that is not left to the precision of the files.
        search_layers: whether to look for the layers where a candidate that fails diverges.
        trust: an engine without a sidecar is loaded too, and taken for one of the file before it.
    """

    backends: Sequence[str] = ()
    reference_backend: str | None = None
    via: Sequence[Path] = ()
    data: Data | None = None
    split: str = "test"
    samples: int | None = None
    batch_size: int = 256
    statistics: Path | Mapping[str, Array] | None = None
    seed: int = 0
    tolerance: GivenTolerance = field(default_factory=GivenTolerance)
    search_layers: bool = True
    trust: bool = False
    reference_name: str = ""


def verify_files(model: Path, against: Path | nn.Module, config: VerificationConfig) -> Verification:
    """Compares a model file with a reference file.

    Args:
        model: a vsfix checkpoint, an ONNX file or an engine.
        against: another, or the same on another backend; or a module of PyTorch, whose training flags stay as they are.
        config: how.

    Raises:
        InputError: files, data or statistics that can't be used; two models with different inputs.
        MissingComponentError: a backend is not here.
    """
    files = _describe(model, against, config)
    if config.statistics is not None:
        if files[0].kind not in ("checkpoint", "module"):
            named = config.statistics if isinstance(config.statistics, Path) else "(in memory)"
            raise InputError(
                f"--statistics {named}: goes with a checkpoint or a module as the reference, not with {against}"
            )
        files[0] = replace(files[0], repaired=True)
    reference, candidate = files[0], files[-1]
    for other in files[:-1]:
        require_same_inputs(candidate, other)
    names = next((found.input_names for found in reversed(files) if found.input_names), candidate.names)
    batch_size = shared_batch_size(config.batch_size, files)
    samples = whole_batches(_samples(candidate, reference, names, config), batch_size, files)
    statistics = read_npz(config.statistics) if isinstance(config.statistics, Path) else config.statistics
    backends = config.backends or (candidate.backend,)
    reference_backend = config.reference_backend or reference.backend

    def search(index: int, inputs: Batch) -> LayerSearch:
        sides = ((reference, reference_backend, statistics), (candidate, backends[index], None))
        return search_files(sides, names[0], inputs, tolerance.min_snr_db)

    tolerance = config.tolerance.resolve(reference.precision, candidate.precision)
    with _training_flags_kept(reference), _open_reference(reference, names, reference_backend, statistics) as runner:
        found = verify(
            runner,
            _candidates(candidate, backends, names[0], name_step(files[-2], candidate), trust=config.trust),
            samples,
            tolerance=tolerance,
            batch_size=batch_size,
            random=config.data is None,
            stages=_stages(files, names[0]),
            search=search if config.search_layers else None,
        )
    return found if found.status == "PASS" else replace(found, hint=_hint(candidate, reference))


def _describe(model: Path, against: Path | nn.Module, config: VerificationConfig) -> list[ModelDescription]:
    """The reference, what lies between, and the model."""
    files = [describe_model(path) for path in ((against,) if isinstance(against, Path) else ()) + tuple(config.via)]
    is_foreign = config.trust and model_kind(model) == "engine" and not sidecar_path(model).exists()
    if is_foreign and not files:
        raise InputError(f"{model}: has no sidecar that says what it takes; build it with vsfix build")
    files.append(describe_trusted_engine(model, files[-1]) if is_foreign else describe_model(model))
    if isinstance(against, Path):
        return files
    return [describe_module(against, config.reference_name or type(against).__name__, files[-1]), *files]


@contextmanager
def _training_flags_kept(reference: ModelDescription) -> Iterator[None]:
    """Lets a module of a user be in eval mode for a while."""
    if reference.module is None:
        yield
        return
    from vsfix.trainers.training.evaluation import eval_mode

    with eval_mode(reference.module):
        yield


def _hint(candidate: ModelDescription, reference: ModelDescription) -> str:
    """Why a repaired model differs from one that was not, as it must."""
    if not candidate.repaired or reference.repaired:
        return ""
    remedy = "give the statistics that `vsfix optimize --statistics` writes, with --statistics"
    if reference.kind not in ("checkpoint", "module"):
        remedy = f"compare {candidate.path.name} with another file of the repaired model"
    return f"{candidate.path.name} was repaired and {reference.path.name} was not, so that they are to differ: {remedy}"


def _candidates(
    candidate: ModelDescription, backends: Sequence[str], input_name: str, step: str, *, trust: bool
) -> Iterator[Stage]:
    """The model on each backend, open while it is looked at."""
    for backend in backends:
        with open_runner(backend, candidate.path, input_name=input_name, trust=trust) as runner:
            yield Stage(step, f"{candidate.path.name}, {runner.name}", runner)


def _stages(files: Sequence[ModelDescription], input_name: str) -> Iterator[Stage]:
    """The step between the reference, the first of the files, and the candidate, the last."""
    for before, found in pairwise(files[:-1]):
        with open_runner(found.backend, found.path, input_name=input_name) as runner:
            yield Stage(name_step(before, found), f"{found.path.name}, {runner.name}", runner)


def _samples(
    candidate: ModelDescription, reference: ModelDescription, names: tuple[str, ...], config: VerificationConfig
) -> Samples:
    """The inputs: the named data, or random numbers."""
    if config.data is None:
        stated = [
            dict(zip(file.input_names or names, file.input_shapes, strict=True)) for file in (candidate, reference)
        ]
        shapes = [next((known[name] for known in stated if known[name] is not None), None) for name in names]
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
        inputs=candidate.inputs_called(names),
    )


def _open_reference(
    reference: ModelDescription, names: Sequence[str], backend: str, statistics: Mapping[str, Array] | None
) -> Runner:
    """The reference on its backend, with other statistics where such are given."""
    input_name = names[0]
    if reference.module is not None:
        if backend not in ("torch", "torch-compile"):
            raise InputError(f"backend '{backend}': a module of PyTorch runs with torch or torch-compile")
        compiled = backend == "torch-compile"
        return open_module(reference.module, names, statistics=statistics, compiled=compiled)
    if statistics is None or backend not in ("torch", "torch-compile"):
        return open_runner(backend, reference.path, input_name=input_name)
    from vsfix.trainers.training.checkpoint import load_checkpoint

    checkpoint, compiled = load_checkpoint(reference.path), backend == "torch-compile"
    return open_checkpoint(checkpoint, input_name=input_name, statistics=statistics, compiled=compiled)
