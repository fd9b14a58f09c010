"""`vsfix.verify` and its result: two models, or two runtimes, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from vsfix.graph_passes.ir.runtime import Array
from vsfix.pipeline.comparison.tolerance import GivenTolerance
from vsfix.pipeline.data.data_forms import Data
from vsfix.pipeline.host.console import PIPE_WIDTH, View
from vsfix.pipeline.terminal.verification_table import verification_view
from vsfix.pipeline.verification import verification
from vsfix.pipeline.verification.verification_files import VerificationConfig, verify_files

from .arguments import Model, files_read, model_file, model_name, models_of, require_split, run_numbers, texts
from .results import Result


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
            return f"{self.model} against {self.against}: within the tolerance on {self.samples} samples of {self.data}"
        failed = [f"{result.candidate}: {reason}" for result in self.results for reason in result.reasons]
        return "; ".join([*failed, *([self.hint] if self.hint else [])])

    @property
    def warnings(self) -> list[str]:
        """The comparisons that were left out, and why."""
        if self.random:
            return ["decisions: the inputs are random numbers; give --data to compare decisions and accuracy"]
        if any(result.decisions is None for result in self.results):
            return ["decisions: the first output holds no logits, which are float and (N, classes)"]
        return []

    def _judgement(self) -> tuple[str, str, Sequence[str]]:
        """The status word, the verdict and the warnings."""
        return self.status, self.verdict, self.warnings

    def _details(self) -> Mapping[str, Any]:
        """The fields of the JSON document beside the envelope."""
        return asdict(self)

    def view(self, width: int = PIPE_WIDTH) -> View:
        """The lines and tables of the terminal, in lines of so many letters."""
        yield from verification_view(self)
        for warning in self.warnings:
            yield f"SKIP {warning}"
        yield f"{self.status} {self.model} against {self.against}"


def verify(
    model: Model,
    against: Model,
    data: Data | None = None,
    *,
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
    seed: int = 0,
) -> Verification:
    """Compares a model with a reference, number by number.

    Args:
        model: the path of a vsfix checkpoint, an ONNX file or an engine, or an `onnx.ModelProto`.
        against: the reference, likewise.
        data: as `--data` takes it, or in any form that `vsfix.pipeline.data.data_forms` lists; labels are used where
            there are some. None feeds random numbers, which say nothing about accuracy.
        via: what lies between reference and model, in the order in which one came from the other.
        backend: where the model runs, one or several, each judged on its own; None for the usual one of its kind.
        reference_backend: where the reference runs; None for the usual one.
        split: `train` or `test`, of a named data set.
        samples: how many to take; None for all, or for 256 random ones.
        batch_size: samples per run; the result does not depend on it.
        statistics: running statistics for a checkpoint as the reference, as `Optimization.state_dict` gives them, or an
            `.npz` file with them.
        tolerance: `GivenTolerance(min_snr_db, min_agreement, max_accuracy_loss)`; None, and each None in it, leaves it
            to the precision of the files.
        layers: look for the layer that differs where a number is past its tolerance.
        trust: load an engine without the report of `vsfix build` beside it. An engine is code that runs here.
        seed: of the choice of samples, or of the random ones.

    Returns:
        What was found; its status is FAIL where a number is past its tolerance, and nothing is raised then.

    Raises:
        InputError: models, data or statistics that can't be used; two models with different inputs.
        MissingComponentError: a backend is not here.
    """
    samples, batch_size, seed = run_numbers(samples, batch_size, seed)
    require_split("split", split)
    between = models_of("via", () if via is None else via)
    config = VerificationConfig(
        backends=() if backend is None else texts("backend", backend),
        reference_backend=reference_backend,
        data=data,
        split=split,
        samples=samples,
        batch_size=batch_size,
        statistics=Path(statistics) if isinstance(statistics, str) else statistics,
        seed=seed,
        tolerance=tolerance or GivenTolerance(),
        search_layers=layers,
        trust=trust,
    )
    with ExitStack() as stack:
        paths = [
            stack.enter_context(model_file(given, name))
            for given, name in [
                (model, "model"),
                (against, "reference"),
                *((step, f"via-{number}") for number, step in enumerate(between)),
            ]
        ]
        found = verify_files(paths[0], paths[1], replace(config, via=tuple(paths[2:])))
    return Verification(
        **{part.name: getattr(found, part.name) for part in fields(found)},
        model=model_name(model),
        against=model_name(against),
        files_read=files_read([model, against, *between, statistics], [data]),
    )
