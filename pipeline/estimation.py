"""From a method and what there is to run it on to the estimates: the user's data, distilled inputs, or stand-ins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vsfix.graph_passes.analytic import analytic
from vsfix.graph_passes.batches import Batch, count_samples, cut_batches, prescribed_batch_size, samples_in
from vsfix.graph_passes.errors import MissingComponentError, ModelError
from vsfix.graph_passes.estimate import Estimate
from vsfix.graph_passes.inference import OpenModel
from vsfix.graph_passes.model_file import export_model
from vsfix.graph_passes.paired import PairedConfig, paired
from vsfix.graph_passes.reestimation import exact
from vsfix.graph_passes.stream import stream

from .preparation import PreparedModel
from .proxy_images import proxy_batch
from .repair_config import RepairConfig

NO_USER_DATA = "no data of the user: "
MAX_BATCH = 256
POOR_MISMATCH = 0.1  # of distilled inputs, for one BatchNorm; those of ordinary networks end at a hundredth of that


@dataclass(frozen=True)
class Estimation:
    """What was estimated, and from what.

    Attributes:
        estimates: by the name of the BatchNorm.
        methods: what estimated each, by the same names.
        reasons: why a BatchNorm that was asked for has none, by its name.
        data: what it rests on, in words.
        batches: what it was run on; empty for the closed forms.
        warnings: what a person should know.
    """

    estimates: Mapping[str, Estimate]
    methods: Mapping[str, str]
    reasons: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    batches: Sequence[Batch] = ()
    warnings: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """The samples that the estimates took, at most."""
        return max((estimate.samples for estimate in self.estimates.values()), default=0)


def estimate_statistics(
    method: str,
    prepared: PreparedModel,
    batches: Sequence[Batch],
    open_model: OpenModel,
    layers: Sequence[str],
    config: RepairConfig,
) -> Estimation:
    """Runs one method.

    Args:
        method: one of the methods but `auto`, or `none`.
        prepared: the model, its noise marked.
        batches: the user's data; empty where there is none.
        open_model: the runtime.
        layers: names of the BatchNorms to estimate.
        config: how to run.

    Raises:
        DataError: data that can't carry an estimate.
        MissingComponentError: `distill` without torch.
    """
    graph = prepared.graph
    if method == "none":
        return Estimation({}, {}, data="nothing was estimated", batches=batches)
    if method == "analytic":
        return _by_closed_forms(prepared, batches, layers)
    if method == "distill":
        return _without_data(prepared, open_model, layers, config)
    if method == "paired":
        estimates = paired(graph, batches, open_model, layers, _paired_config(config))
    elif method == "stream":
        estimates = stream(graph, batches, open_model, layers)
    else:
        estimates = exact(graph, batches, open_model, layers, max_memory=config.max_memory)
    used = max((estimate.samples for estimate in estimates.values()), default=0)
    data = f"{used} samples of the data"
    return Estimation(estimates, dict.fromkeys(estimates, method), data=data, batches=batches)


def _by_closed_forms(prepared: PreparedModel, batches: Sequence[Batch], layers: Sequence[str]) -> Estimation:
    """The closed forms; what they can't see is said, for a network that is half repaired may be worse than before."""
    closed, reasons = analytic(prepared.graph, layers)
    warnings: tuple[str, ...] = ()
    if reasons:
        warnings = (
            f"the closed forms say nothing of {len(reasons)} BatchNorms that noise reaches too; those keep statistics "
            "that no longer fit, which can cost more than it brings: take distill or paired, or check with --eval-data",
        )
    return Estimation(
        closed, dict.fromkeys(closed, "analytic"), reasons, NO_USER_DATA + "closed forms", batches, warnings
    )


def _in_batches(inputs: Batch, prepared: PreparedModel) -> list[Batch]:
    """Inputs in batches that the graph takes; what does not fill a prescribed one is left out."""
    size = prescribed_batch_size(prepared.graph)
    if size is None:
        return list(cut_batches([inputs], MAX_BATCH))
    return [batch for batch in cut_batches([inputs], size) if samples_in(batch) == size]


def _paired_config(config: RepairConfig, *, foreign: bool = False) -> PairedConfig:
    precision = 0.0 if foreign else config.precision
    return PairedConfig(config.seed, config.repeats, precision, config.max_memory, foreign)


def _without_data(
    prepared: PreparedModel, open_model: OpenModel, layers: Sequence[str], config: RepairConfig
) -> Estimation:
    """The paired method on distilled inputs; on stand-ins where the graph can't be differentiated."""
    try:
        from vsfix.trainers.distillation import DistillationConfig, distill
        from vsfix.trainers.onnx_call import UnsupportedOperatorError
    except ImportError:
        raise MissingComponentError(
            "--method distill needs torch; run: pip install 'vsfix[train]', or give --data, or take --method analytic"
        ) from None
    model = export_model(prepared.graph, prepared.source)
    search = DistillationConfig(seed=config.seed, input_shape=config.input_shape)
    try:
        distilled = distill(model, search)
    except UnsupportedOperatorError as error:
        return _on_stand_ins(prepared, open_model, layers, config, str(error))
    batches = _in_batches(distilled.inputs, prepared)
    estimates = paired(prepared.graph, batches, open_model, layers, _paired_config(config))
    data = f"{NO_USER_DATA}{count_samples(batches)} inputs distilled from the model"
    left = distilled.total_mismatch / len(distilled.mismatch)
    warnings: tuple[str, ...] = ()
    if left > POOR_MISMATCH:
        warnings = (f"the distilled inputs are not much like the training data (mismatch {left:.2f} a BatchNorm)",)
    if distilled.steps < search.steps:
        warnings = (
            *warnings,
            f"the search for inputs was cut short after {search.time_limit:.0f} s, in step {distilled.steps} of "
            f"{search.steps}: the same command ends elsewhere when the machine has more time, or less",
        )
    return Estimation(estimates, dict.fromkeys(estimates, "distill"), data=data, batches=batches, warnings=warnings)


def _on_stand_ins(
    prepared: PreparedModel, open_model: OpenModel, layers: Sequence[str], config: RepairConfig, why: str
) -> Estimation:
    """The closed form where no other noise arrives, the paired method on foreign images elsewhere."""
    try:
        batches = _in_batches(proxy_batch(prepared.source, config.seed), prepared)
    except ModelError as error:
        raise ModelError(f"no inputs can be distilled ({why}), and {error}") from error
    estimates = paired(prepared.graph, batches, open_model, layers, _paired_config(config, foreign=True))
    closed, _ = analytic(prepared.graph, layers, alone=True)
    methods = dict.fromkeys(estimates, "paired on stand-ins") | dict.fromkeys(closed, "analytic")
    warning = f"no inputs could be distilled ({why}); handwritten digits stood in for the data"
    data = f"{NO_USER_DATA}{count_samples(batches)} stand-in images"
    return Estimation({**estimates, **closed}, methods, data=data, batches=batches, warnings=(warning,))
