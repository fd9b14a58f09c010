"""`vsfix.inspect` and its result: what is known of a model before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from vsfix.graph_passes.io.model_file import export_model
from vsfix.graph_passes.progress import stage
from vsfix.graph_passes.statistics.batches import Batch
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.data.calibration import calibration_batches, model_inputs
from vsfix.pipeline.data.data_forms import Data, hold_data
from vsfix.pipeline.host.console import View
from vsfix.pipeline.host.environment import command_line
from vsfix.pipeline.inspection import inspection
from vsfix.pipeline.inspection.diagnosis import judge_inspection
from vsfix.pipeline.repair.plan import MATCHED, SAMPLES, averaged_part
from vsfix.pipeline.terminal.tables import inspection_view

from .arguments import (
    Model,
    Numbers,
    files_read,
    given_data,
    load_model,
    model_name,
    normalization_of,
    notes_of,
    require_output_kinds,
    run_numbers,
    texts,
)
from .results import Result


@dataclass(frozen=True)
class Inspection(inspection.Inspection, Result):
    """The result of `inspect`: the BatchNorms, the noise that reaches each, R, and which fault it is.

    The attributes are those of `vsfix.pipeline.inspection.inspection.Inspection`, and:

    Attributes:
        source: the model as it was named.
    """

    command: ClassVar[str] = "inspect"

    source: str = ""

    @property
    def status(self) -> str:
        """PASS; WARN where there is something to repair or to know; FAIL where no repair makes it deployable."""
        return judge_inspection(self)[0]

    @property
    def verdict(self) -> str:
        """One sentence with the numbers."""
        return judge_inspection(self)[1]

    def to_html(self, path: str | Path, force: bool = False) -> None:
        """Writes the page.

        Raises:
            OutputExistsError, InputError: the file exists and `force` is not given, it can't be written, or was read.
        """
        from vsfix.pipeline.pages.inspection_page import write_inspection_page  # jinja2 takes its time

        self.require_outputs(path, force=force)
        write_inspection_page(self, Path(self.source).name, Path(path), command=command_line(), force=force)

    def _judgement(self) -> tuple[str, str, Sequence[str]]:
        """The status word, the verdict and the warnings."""
        return *judge_inspection(self), self.warnings

    def _details(self) -> Mapping[str, Any]:
        """The fields of the JSON document beside the envelope."""
        return asdict(self)

    def view(self) -> View:
        """The lines and tables of the terminal."""
        return inspection_view(self, self.status, self.verdict)


@stage("inspect")
def inspect(
    model: Model,
    data: Data | None = None,
    *,
    noise: str | Sequence[str] = (),
    samples: int | None = None,
    batch_size: int = 256,
    output_kinds: Mapping[str, str] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    size: int | Sequence[int] | None = None,
    seed: int = 0,
) -> Inspection:
    """Says how far a model is from the network that was trained, and lists its BatchNorms. Nothing is changed.

    Args:
        model: the path of an ONNX file, or an `onnx.ModelProto`.
        data: samples like those of the training, without labels, as `--data` takes them or in any form that
            `vsfix.pipeline.data.data_forms` lists, batch axis first; None measures nothing.
        noise: noise that the file does not show, each as `NODE=KIND:VALUE`, as `bn2=dropout:0.5`.
        samples: how many to take; None for 500, or as many as there are.
        batch_size: samples per run.
        output_kinds: what outputs mean, by name: `classes`, `probabilities`, `directions` or `values`; the others are
            recognised.
        mean: of the images of the training, between 0 and 1: one number, or one for each channel; for named data sets
            and images of bytes where the model does not say how they are normalised: (x / 255 - mean) / std.
        std: the deviation, likewise.
        size: (height, width) of the images of a folder, where the model takes any.
        seed: of everything that is drawn at random.

    Returns:
        What was found.

    Raises:
        InputError: a model, data or an option that can't be used; its subclasses say which.
        MissingComponentError: a library that this needs is not installed.
    """
    samples, batch_size, seed = run_numbers(samples, batch_size, seed)
    require_output_kinds(output_kinds)
    noise = texts("noise", noise)
    given = given_data(data, normalization_of(mean, std, size))
    loaded = load_model(model)
    # What the data must hold is asked of the prepared model: an input that only switches Dropout is gone from it.
    prepared = inspection.prepare(loaded, noise)
    deployable = export_model(prepared.graph, loaded)
    takes = model_inputs(deployable)
    names = [one.name for one in takes]
    held = None if given is None else hold_data(given, names, samples or SAMPLES, seed, takes)

    def draw(count: int) -> Sequence[Batch]:
        """The batches that are drawn of the data."""
        if held is None:
            return []
        return calibration_batches(
            deployable, held, samples=samples or count, at_most=samples is None, batch_size=batch_size, seed=seed
        )

    batches = draw(SAMPLES)
    # R is that of `optimize`, which takes fewer for a match.
    averaged_on = averaged_part(batches, prepared, "auto", lambda: draw(MATCHED)) if samples is None else ()
    config = inspection.InspectionConfig(noise, output_kinds or {}, seed)
    found = inspection.inspect_model(prepared, batches, open_for_small_runs, config, averaged_on=averaged_on)
    return Inspection(
        **{part.name: getattr(found, part.name) for part in fields(found)},
        source=model_name(model),
        files_read=files_read([model], [data]),
        data_notes=notes_of(given),
    )
