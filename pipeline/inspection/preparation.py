"""From any ONNX file to a graph that can be measured: deployable, each BatchNorm one node, the noise marked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx
import onnx_graphsurgeon as gs

from vsfix.graph_passes.batch_norm.batch_norm import (
    find_batch_norms,
    find_modules,
    require_batch_norms,
    separate_statistics,
    unreadable_batch_norms,
)
from vsfix.graph_passes.batch_norm.primitives import MERGED, PLAIN_AFFINE
from vsfix.graph_passes.cleaning.deployment import deployment_passes
from vsfix.graph_passes.errors import InputError, ModelError
from vsfix.graph_passes.folding.recompose_batch_norm import RecomposeBatchNorm
from vsfix.graph_passes.io.model_file import import_graph, read_metadata
from vsfix.graph_passes.ir.fold_constants import FoldConstants
from vsfix.graph_passes.ir.graph import consumed_tensors, is_standard, label_of
from vsfix.graph_passes.ir.graph_pass import PassPipeline, Skipped
from vsfix.graph_passes.noise.analysis import NoiseMap, analyse_noise
from vsfix.graph_passes.noise.insertion import InsertNoise, parse_noise_option
from vsfix.graph_passes.noise.marker import (
    EXPORT_METADATA_KEY,
    REPAIR_KEY,
    RemoveMarkers,
    has_open_ratio,
    is_dropout,
    marker_label,
    read_marker,
)
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.training_export.random_expression import RANDOM_OPERATORS


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """A model that is ready to be looked at.

    Attributes:
        source: the model as it was read.
        graph: its graph, prepared; who edits takes a copy.
        changes: what was done to it, one line each.
        warnings: what could not be done, one line each.
        shows_its_noise: whether the export vouched for its markers, or a person said where the noise was.
    """

    source: onnx.ModelProto
    graph: gs.Graph
    changes: tuple[str, ...]
    warnings: tuple[str, ...]
    shows_its_noise: bool

    @cached_property
    def noise_map(self) -> NoiseMap:
        """The noise that the graph marks, and the BatchNorms that it reaches."""
        return analyse_noise(self.graph)

    @property
    def is_lost(self) -> bool:
        """Whether the file neither shows its noise nor vouches that it has none."""
        return not self.shows_its_noise and not self.noise_map.sources

    @cached_property
    def repaired(self) -> tuple[str, ...]:
        """The BatchNorms and layers that the file says were repaired."""
        return repaired_batch_norms(read_metadata(self.source))

    def without_noise(self) -> PreparedModel:
        """This model without its markers, as one that has no noise."""
        graph = self.graph.copy()
        RemoveMarkers()(graph)
        return replace(self, graph=graph, shows_its_noise=True)

    def with_noise(self, noise: Mapping[str, Noise]) -> PreparedModel:
        """This model with markers for noise that was inferred; itself where there is none.

        Args:
            noise: by the name of the tensor that it was on.

        Raises:
            InputError: a tensor that can't carry a marker.
        """
        if not noise:
            return self
        graph = self.graph.copy()
        inserted = InsertNoise(noise, tensors_only=True)(graph)
        changes = tuple(f"{change.subject}: {change.action}" for change in inserted.changed)
        return replace(self, graph=graph, changes=(*self.changes, *changes))


def prepare_model(
    model: onnx.ModelProto, noise: Sequence[str] = (), *, needs_batch_norms: bool = True
) -> PreparedModel:
    """Prepares a model; the input is not changed.

    Args:
        model: a checked model.
        noise: noise that the file does not show, each as `NODE=KIND:VALUE`.
        needs_batch_norms: whether nothing can be done with a file that has neither a BatchNorm nor a marker.

    Raises:
        ModelError: no BatchNorm is left in such a file, or none can be read; the message says how to export one.
        InputError: a `noise` that fits nothing.
    """
    graph = import_graph(model)
    passes = PassPipeline([*deployment_passes(), RecomposeBatchNorm(), FoldConstants()])
    done = passes(graph)
    lookalikes = [skipped for skipped in done.skipped if skipped.reason in (MERGED, PLAIN_AFFINE)]
    others = [skipped for skipped in done.skipped if skipped not in lookalikes]
    warnings = [f"{skipped.subject}: {skipped.reason}" for skipped in (*others, *unreadable_batch_norms(graph))]
    warnings += [sentence for reason in (MERGED, PLAIN_AFFINE) if (sentence := _together(lookalikes, reason))]
    warnings += [*_open_ratios(graph), *_replaceable(model)]
    inserted = InsertNoise(_given(noise))(graph)
    if needs_batch_norms and not has_noise(graph):
        if lookalikes and not find_batch_norms(graph):
            raise ModelError(
                f"no BatchNorm of the model can be measured: {warnings[-1]}; to repair it all the same, say where its "
                "noise was, with --noise 'NODE=dropout:RATIO'; to fold it alone, take --method none"
            )
        require_batch_norms(graph)
    _require_no_draws(graph)
    separate_statistics(graph)
    for batch_norm in find_batch_norms(graph):
        batch_norm.node.attrs.pop("spatial", None)  # its statistics are one for each channel, whatever it says
    return PreparedModel(
        source=model,
        graph=graph,
        changes=tuple(f"{change.subject}: {change.action}" for change in (*done.changed, *inserted.changed)),
        warnings=tuple(warnings),
        shows_its_noise=EXPORT_METADATA_KEY in read_metadata(model) or bool(noise),
    )


def _together(skipped: Sequence[Skipped], reason: str) -> str:
    """One sentence for all that were skipped for one reason; empty for none."""
    names = [each.subject for each in skipped if each.reason == reason]
    more = f" (and {len(names) - 1} more like it)" if len(names) > 1 else ""
    return f"{names[0]}{more}: {reason}" if names else ""


def _open_ratios(graph: gs.Graph) -> list[str]:
    """The warning about Dropouts whose ratio is not in the file."""
    return [
        f"Dropout '{marker_label(node)}': its ratio is not in the file, so how much it dropped is unknown; say it with "
        f"--noise '{marker_label(node)}=dropout:RATIO'"
        for node in graph.nodes
        if is_dropout(node) and has_open_ratio(node)
    ]


def _replaceable(model: onnx.ModelProto) -> list[str]:
    """The note on constants that are inputs too, so that a caller may replace them; exporters list all."""
    inputs = {tensor.name for tensor in model.graph.input}
    stored = {tensor.name for tensor in model.graph.initializer}
    both = sorted(inputs & stored)
    if not both or stored <= inputs or model.ir_version < 4:
        return []
    more = f" and {len(both) - 1} more" if len(both) > 1 else ""
    return [f"'{both[0]}'{more} is an input with a default, which is folded in: the written file takes no other value"]


def has_noise(graph: gs.Graph) -> bool:
    """Whether a graph marks any noise."""
    return any(read_marker(node) is not None for node in graph.nodes)


def repaired_batch_norms(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The BatchNorms that a file says were repaired; none of one that was only cast or folded.

    Args:
        metadata: its metadata_props. An entry that vsfix has not written names none.
    """
    names = _said(metadata).get("repaired")
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def was_healthy(metadata: Mapping[str, str]) -> bool:
    """Whether a file says that it needed no repair: it was found near its noise-averaged network, or had no noise."""
    return metadata.get(EXPORT_METADATA_KEY) == "0" or _said(metadata).get("healthy") is True


def _said(metadata: Mapping[str, str]) -> dict[str, object]:
    """What vsfix wrote into a file on its repair; nothing of an entry that it has not written."""
    try:
        found = json.loads(metadata.get(REPAIR_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def unrepaired_noise(model: onnx.ModelProto) -> str:
    """The warning about a file that is deployed although it shows the noise of its training; else empty."""
    if repaired_batch_norms(read_metadata(model)):
        return ""
    graph = import_graph(model)
    noisy = analyse_noise(graph).reached
    reached = [module.name for module in find_modules(graph) if module.name in noisy]
    if not reached:
        return ""
    others = len(reached) - 1
    more = {0: "", 1: " and 1 other"}.get(others, f" and {others} others")
    return (
        f"the file was not repaired, and the noise of its training reaches BatchNorm '{reached[0]}'{more}: look with "
        "`vsfix inspect`, repair with `vsfix optimize`"
    )


def _given(noise: Sequence[str]) -> dict[str, Noise]:
    """The noise by the name of its insertion point."""
    given: dict[str, Noise] = {}
    for text in noise:
        name, found = parse_noise_option(text)
        if given.setdefault(name, found) != found:
            raise InputError(f"--noise: '{name}' is given twice, as {given[name]} and as {found}")
    return given


def _require_no_draws(graph: gs.Graph) -> None:
    """Refuses a graph that still draws at random where it would be deployed: no two of its runs can be compared."""
    wanted = {id(tensor) for tensor in graph.outputs}
    for node in reversed(graph.nodes):
        if not any(id(tensor) in wanted for tensor in node.outputs):
            continue
        if node.op in RANDOM_OPERATORS and is_standard(node):
            raise ModelError(
                f"{label_of(node)} draws at random at inference, in a distribution that is not "
                "known to be training noise; export the model after model.eval()"
            )
        wanted.update(id(tensor) for tensor in consumed_tensors(node))
