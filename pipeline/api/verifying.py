"""`vsfix.verify` and its result: two models, or two runtimes, side by side."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from vsfix.graph_passes.errors import InputError
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.progress import stage
from vsfix.pipeline.backends.model_kind import names_factory
from vsfix.pipeline.comparison.tolerance import GivenTolerance
from vsfix.pipeline.data.data_forms import Data
from vsfix.pipeline.host.console import View
from vsfix.pipeline.terminal.verification_table import verification_view
from vsfix.pipeline.verification import verification
from vsfix.pipeline.verification.verification_files import VerificationConfig, verify_files

from .arguments import (
    Model,
    Numbers,
    files_read,
    given_data,
    model_file,
    model_name,
    models_of,
    normalization_of,
    notes_of,
    require_split,
    run_numbers,
    texts,
)
from .results import Result

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Verification(verification.Verification, Result):
    """A model on each backend against one reference.

    The attributes are those of `vsfix.pipeline.verification.verification.Verification`, and:

    Attributes:
        model: the model as it was named.
        against: the reference as it was named.
    """

    command: ClassVar[str] = "verify"

    model: str = ""
    against: str = ""

    @property
    def verdict(self) -> str:
        """One sentence: that all is within its tolerance, or each number that is not."""
        if self.status == "PASS":
            where = f"within the tolerance on {self.samples} samples of {self.data}"
            worst = f"; {self.worst_output}" if self.worst_output else ""
            return f"{self.model} against {self.against}: {where}{worst}"
        failed = [f"{result.candidate}: {reason}" for result in self.results for reason in result.reasons]
        return "; ".join([*failed, *(text for text in (self.worst_output, self.hint) if text)])

    @property
    def worst_output(self) -> str:
        """Which of several outputs is farthest from the reference, and how far; empty where there is one."""
        found = [(comparison.snr_db, name) for result in self.results for name, comparison in result.outputs.items()]
        if len({name for _, name in found}) < 2:
            return ""
        snr_db, name = min(found)
        return f"worst output '{name}', " + ("exact" if snr_db == math.inf else f"{snr_db:.1f} dB")

    @property
    def warnings(self) -> list[str]:
        """The comparisons that were left out, and why."""
        if self.random:
            return ["decisions: the inputs are random numbers; give --data to compare decisions and accuracy"]
        if any(result.is_embedding for result in self.results):
            return ["decisions: the first output is an embedding"]
        if any(result.decisions is None for result in self.results):
            return ["decisions: the first output holds no logits, which are float and (N, classes)"]
        return []

    def _judgement(self) -> tuple[str, str, Sequence[str]]:
        """The status word, the verdict and the warnings."""
        return self.status, self.verdict, self.warnings

    def _details(self) -> Mapping[str, Any]:
        """The fields of the JSON document beside the envelope."""
        return asdict(self) | {"worst_output": self.worst_output}

    def view(self) -> View:
        """The lines and tables of the terminal."""
        yield from verification_view(self)
        for warning in self.warnings:
            yield f"SKIP {warning}"
        yield f"{self.status} {self.model} against {self.against}" + (
            f": {self.worst_output}" if self.worst_output else ""
        )


@stage("verify")
def verify(
    model: Model,
    against: Model | nn.Module,
    data: Data | None = None,
    *,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    via: Model | Sequence[Model] = (),
    backend: str | Sequence[str] | None = None,
    reference_backend: str | None = None,
    split: str = "test",
    samples: int | None = None,
    batch_size: int = 256,
    statistics: str | Path | Mapping[str, Array] | None = None,
    tolerance: GivenTolerance | None = None,
    layers: bool = True,
    trust: bool = False,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    size: int | Sequence[int] | None = None,
    seed: int = 0,
) -> Verification:
    """Compares a model with a reference, number by number.

    Args:
        model: the path of a vsfix checkpoint, an ONNX file or an engine, or an `onnx.ModelProto`.
        against: the reference, likewise; or a `torch.nn.Module`, or the text `package.module:factory`, which names a
            function without arguments that returns one: its code is run. The inputs of the model are given to the
            arguments of their names, else in order, and its outputs are compared by name, else in order.
        weights: for a factory: a checkpoint that holds the weights of its module; None keeps what the factory gave it.
        weights_key: where they are in it, where there are several.
        data: as `--data` takes it, or in any form that `vsfix.pipeline.data.data_forms` lists; labels are used where
            there are some. None feeds random numbers, which say nothing about accuracy.
        via: what lies between reference and model, in the order in which one came from the other.
        backend: where the model runs, one or several, each judged on its own; None for the usual one of its kind.
        reference_backend: where the reference runs; None for the usual one.
        split: `train` or `test`, of a named data set.
        samples: how many to take; None for all, or for 256 random ones.
        batch_size: samples per run; the result does not depend on it.
        statistics: running statistics for a checkpoint or a module as the reference, as `Optimization.state_dict` gives
            them, or an `.npz` file with them.
        tolerance: `GivenTolerance(min_snr_db, min_agreement, max_accuracy_loss)`; None, and each None in it, leaves it
            to the precision of the files.
        layers: look for the layer that differs where a number is past its tolerance.
        trust: load an engine without the report of `vsfix build` beside it. An engine is code that runs here.
        mean: of the images of the training, between 0 and 1: one number, or one for each channel; for named data sets
            and images of bytes where the model does not say how they are normalised: (x / 255 - mean) / std.
        std: the deviation, likewise.
        size: (height, width) of the images of a folder, where the model takes any.
        seed: of the choice of samples, or of the random ones.

    Returns:
        What was found; its status is FAIL where a number is past its tolerance, and nothing is raised then.

    Raises:
        InputError: models, data or statistics that can't be used; two models with different inputs.
        MissingComponentError: a backend is not here.
    """
    samples, batch_size, seed = run_numbers(samples, batch_size, seed)
    require_split("split", split)
    given = given_data(data, normalization_of(mean, std, size))
    between = models_of("via", () if via is None else via)
    reference, name = _module_of(against, weights, weights_key)
    config = VerificationConfig(
        backends=() if backend is None else texts("backend", backend),
        reference_backend=reference_backend,
        data=given,
        split=split,
        samples=samples,
        batch_size=batch_size,
        statistics=Path(statistics) if isinstance(statistics, str) else statistics,
        seed=seed,
        tolerance=tolerance or GivenTolerance(),
        search_layers=layers,
        trust=trust,
        reference_name=name,
    )
    with ExitStack() as stack:
        path = stack.enter_context(model_file(model, "model"))
        right = reference or stack.enter_context(model_file(cast("Model", against), "reference"))
        steps = [stack.enter_context(model_file(step, f"via-{number}")) for number, step in enumerate(between)]
        found = verify_files(path, right, replace(config, via=tuple(steps)))
    return Verification(
        **{part.name: getattr(found, part.name) for part in fields(found)},
        model=model_name(model),
        against=name or model_name(cast("Model", against)),
        files_read=files_read([model, None if name else against, weights, *between, statistics], [data]),
        data_notes=notes_of(given),
    )


def _module_of(
    against: Model | nn.Module, weights: str | Path | None, weights_key: str | None
) -> tuple[nn.Module | None, str]:
    """The module that a reference is or names, and what results call it; None and no name for a file."""
    if names_factory(against):
        from vsfix.trainers.export.exporting import module_of_factory

        module, _ = module_of_factory(str(against), None if weights is None else Path(weights), weights_key)
        return module, str(against)
    if weights is not None or weights_key is not None:
        raise InputError("weights and weights_key go with package.module:factory as the reference; leave them out")
    torch = sys.modules.get("torch")  # who gives a module has loaded it
    if torch is not None and isinstance(against, torch.nn.Module):
        return against, type(against).__name__
    return None, ""
