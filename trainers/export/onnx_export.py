"""From a torch module to an ONNX file that keeps what vsfix needs: every BatchNorm, and every noise layer as a marker.

observe   one forward in training mode finds the noise that layers make by hand (see `training_noise`)
trace     torch.export in eval mode; each noise call becomes an opaque operator (see `noise_tracing`)
convert   torch's ONNX exporter without its optimizer, which would fold the BNs away (see `onnx_conversion`)
clean     constants folded, identities removed: the shape clutter of the exporter stops TensorRT's parser
mark      each opaque operator becomes the marker of `graph_passes.marker`
check     the full ONNX checker, then ONNX Runtime against torch; only then is there a result
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile

import onnx
import onnx_graphsurgeon as gs
import torch
from torch import nn

from vsfix.graph_passes.batch_norm.batch_norm import find_modules
from vsfix.graph_passes.errors import CheckFailedError, InputError, ModelError
from vsfix.graph_passes.io.atomic_file import atomic_path, require_writable
from vsfix.graph_passes.io.model_file import check_model, export_model, import_graph
from vsfix.graph_passes.ir.rounding import snr_db
from vsfix.graph_passes.ir.runtime import Array
from vsfix.graph_passes.noise.marker import EXPORT_METADATA_KEY, REPAIR_KEY, write_marker
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.progress import stage
from vsfix.trainers.layers.repair_mark import repaired_parts
from vsfix.trainers.training.evaluation import eval_mode

from .module_signature import INPUT, OUTPUT, Example, ModuleInputs, as_inputs
from .noise_reach import reaches_deployment
from .noise_tracing import NOISE_DOMAIN, NoiseTracer
from .onnx_cleaning import convert_down, remove_clutter
from .onnx_conversion import (
    Reference,
    convert_program,
    float64_references,
    quiet_exporter,
    require_exportable,
    torch_references,
    trace_module,
)
from .onnxruntime_library import Agreement, compare_with_torch
from .training_noise import observe_training_noise

MIN_OPSET = 15  # BatchNormalization got its present form there
MAX_OPSET = 25
MIN_SNR_DB = 100.0
# Where float32 itself is worse than that, the file may be this much worse than torch against float64, and no worse
# than the second number.
WORSE_THAN_TORCH_DB = 6.0
LEAST_SNR_DB = 40.0
_BATCH_NORMS = (torch.ops.aten.batch_norm.default, torch.ops.aten._native_batch_norm_legit_no_training.default)
_logger = logging.getLogger(__name__)


def describe_lost_noise(module: nn.Module, rows: ModuleInputs, tracer: NoiseTracer, graph: gs.Graph) -> list[str]:
    """Describes the noise that eval mode cuts off from the output and that matters in training mode.

    Args:
        module: what was exported.
        rows: inputs, at least two samples.
        tracer: the noise that was seen.
        graph: with the opaque operators still in it.
    """
    lost = tracer.marked.keys() - {node.attrs["name"] for node in graph.nodes if node.domain == NOISE_DOMAIN}
    if not lost or not reaches_deployment(module, rows, [tracer.sources[name] for name in lost]):
        return []
    return [f"{len(lost)} noise calls whose result the output depends on in training mode only"]


def write_markers(graph: gs.Graph, marked: Mapping[str, Noise]) -> tuple[tuple[str, Noise], ...]:
    """Replaces each opaque operator by the marker of its noise; returns the markers in the graph's order."""
    taken = {tensor.name for tensor in graph.tensors().values()} | {node.name for node in graph.nodes}
    markers: list[tuple[str, Noise]] = []
    for index, node in enumerate(graph.nodes):
        if node.domain != NOISE_DOMAIN:
            continue
        noise = marked[node.attrs["name"]]
        name = unused_name(node.attrs["name"], taken)
        data, output = node.inputs[0], node.outputs[0]
        node.inputs.clear()
        node.outputs.clear()
        graph.nodes[index] = write_marker(name, noise, data, output)
        markers.append((name, noise))
    graph.import_domains = [entry for entry in graph.import_domains if entry.domain != NOISE_DOMAIN]
    return tuple(markers)


def unused_name(label: str, taken: set[str]) -> str:
    """The label, with a number where it or one of the tensors that would be named after it is taken."""
    name, number = label, 2
    while taken & {name, f"{name}.ratio", f"{name}.training_mode"}:
        name, number = f"{label}_{number}", number + 1
    taken.add(name)
    return name


@dataclass(frozen=True)
class ExportResult:
    """The contents of an exported file, and its agreement with torch.

    Attributes:
        path: the file; None where none was written.
        opset: of the standard operators.
        markers: the name and the noise of each marker, in the order of the graph.
        batch_norms: the name of each BatchNormalization, in the order of the graph.
        unmarked: one description for each noise that the file does not show.
        max_abs_error: the largest difference to torch in any output.
        snr_db: 10 log10(sum ref^2 / sum (ref - out)^2), the lowest of all outputs and runs: of the example, of one
            sample, and of each other free axis in another size; inf where they are equal.
        inputs: the names of the file's inputs.
        outputs: of each output its name, its largest difference and its lowest SNR, in the order of the file.
        unbatched: the names of outputs whose first axis is not that of the batch.
        untracked: the name of each BatchNorm module that keeps no statistics (track_running_stats=False) and so
            normalises each batch by itself, deployed too.
    """

    path: Path | None
    opset: int
    markers: tuple[tuple[str, Noise], ...]
    batch_norms: tuple[str, ...]
    unmarked: tuple[str, ...]
    max_abs_error: float
    snr_db: float
    inputs: tuple[str, ...] = ()
    outputs: tuple[Agreement, ...] = ()
    unbatched: tuple[str, ...] = ()
    untracked: tuple[str, ...] = ()

    @property
    def worst_output(self) -> str:
        """The name of the output that is farthest from torch's."""
        return min(self.outputs, key=lambda output: output.snr_db).output


def export_onnx(
    module: nn.Module,
    example: Example,
    path: Path,
    *,
    opset: int = 18,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
    input_name: str = INPUT,
    output_name: str = OUTPUT,
) -> ExportResult:
    """Writes `module` as an ONNX file; see `convert_module`.

    Args:
        module: float32, on the CPU.
        example: one input, shape (N, ...), of which the file takes any batch size; or inputs with free axes.
        path: the output file.
        opset: 15 to 25.
        metadata: entries of the file's metadata_props.
        force: an existing file may be replaced.
        input_name: of the graph's input, where the example is a tensor.
        output_name: of the graph's output, where it is one tensor that has no name of its own.

    Raises:
        InputError: the path can't be used as it is.
        VsfixError: see `convert_module`; nothing is written then.
    """
    require_writable(path, force=force)
    model, result = convert_module(
        module,
        example,
        opset=opset,
        metadata=metadata,
        input_name=input_name,
        output_name=output_name,
        name=str(path),
    )
    with atomic_path(path, force=force) as temporary:
        onnx.save(model, temporary)
    return replace(result, path=path)


def convert_module(
    module: nn.Module,
    example: Example,
    *,
    opset: int = 18,
    metadata: Mapping[str, str] | None = None,
    input_name: str = INPUT,
    output_name: str = OUTPUT,
    name: str = "the export",
    hidden: Sequence[str] = (),
) -> tuple[onnx.ModelProto, ExportResult]:
    """Makes an ONNX model of `module` and checks it against torch on the example and on a batch of one.

    The module's training flags are as before afterwards, also after an error.

    Args:
        module: float32, on the CPU.
        example: one input, shape (N, ...), of which the model takes any batch size; or inputs with free axes.
        opset: 15 to 25.
        metadata: entries of the model's metadata_props.
        input_name: of the graph's input, where the example is a tensor.
        output_name: of the graph's output, where it is one tensor that has no name of its own.
        name: of the model, in messages.
        hidden: one description for each noise that the module itself does not show.

    Raises:
        InputError: the module, the example or the opset can't be used as they are.
        ModelError: torch can't trace the module, or it can't be converted.
        CheckFailedError: the model computes something else than torch.
        MissingComponentError: ONNX Runtime is not installed.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise InputError(f"opset {opset}: must lie between {MIN_OPSET} and {MAX_OPSET}")
    inputs = as_inputs(example, input_name)
    require_exportable(module, inputs)
    rows = inputs.pair()
    if inputs.batch is not None:
        inputs = rows  # one row would become a fixed batch size
    with eval_mode(module), torch.no_grad(), quiet_exporter():
        references = torch_references(module, inputs)
        observed = observe_training_noise(module, rows)
        program, tracer = trace_module(module, inputs, observed.layers)
        outputs = [output_name if each == OUTPUT else each for each in references[0].outputs]
        source = convert_program(program, inputs, outputs, opset)
        graph = import_graph(source)
        remove_clutter(graph, module.state_dict().keys())
        lost = describe_lost_noise(module, rows, tracer, graph)
        markers = write_markers(graph, tracer.marked)
        batch_norms = _exported_batch_norms(graph, tracer, program)
        unmarked = (*tracer.unmarked, *observed.unknown, *lost, *hidden)
        # Only a file that shows all of its noise may claim to: see the key's own comment.
        claims = {} if unmarked else {EXPORT_METADATA_KEY: str(len(markers))}
        if repaired := repaired_parts(module):
            claims[REPAIR_KEY] = json.dumps({"vsfix": version("vsfix"), "repaired": repaired})
        model = _assemble(graph, source, opset, {**(metadata or {}), **claims})
        agreements = _check(model, name, module, references)
    for description in unmarked:
        _logger.warning("%s: the file does not show %s", name, description)
    return model, ExportResult(
        None,
        opset,
        markers,
        batch_norms,
        unmarked,
        max_abs_error=max(each.max_abs_error for each in agreements),
        snr_db=min(each.snr_db for each in agreements),
        inputs=inputs.names,
        outputs=tuple(replace(each, output=name) for each, name in zip(agreements, outputs, strict=True)),
        unbatched=_unbatched(references),
        untracked=_untracked(module),
    )


def _unbatched(references: Sequence[Reference]) -> tuple[str, ...]:
    """The names of the outputs whose first axis does not follow the batch, which is another in the first two runs."""
    batch = references[0].inputs.batch
    if batch is None:
        return ()
    return tuple(
        name
        for name in references[0].outputs
        if any(each.outputs[name].shape[:1] != (each.inputs.sizes[batch],) for each in references[:2])
    )


def _untracked(module: nn.Module) -> tuple[str, ...]:
    """The names of the BatchNorms without running statistics."""
    kinds = nn.modules.batchnorm._BatchNorm
    return tuple(
        name for name, layer in module.named_modules() if isinstance(layer, kinds) and layer.running_mean is None
    )


def _exported_batch_norms(
    graph: gs.Graph, tracer: NoiseTracer, program: torch.export.ExportedProgram
) -> tuple[str, ...]:
    """The names of the BNs in the graph, which must be as many as torch's output depends on."""
    modules = find_modules(graph)
    names = tuple(module.name for module in modules)
    if sum(len(module.uses) for module in modules) < _needed_batch_norms(program):
        lost = sorted(set(tracer.batch_norms) - set(names))
        raise ModelError(f"torch.onnx did not keep {len(lost)} BatchNorms ({', '.join(lost)}); nothing is written")
    return names


def _needed_batch_norms(program: torch.export.ExportedProgram) -> int:
    """The number of BatchNorm calls with stored statistics that the output of a traced module depends on."""
    pending = list(program.graph.find_nodes(op="output"))
    needed = set(pending)
    while pending:
        new = [node for node in pending.pop().all_input_nodes if node not in needed]
        needed.update(new)
        pending.extend(new)
    batch_norms = [node for node in needed if node.target in _BATCH_NORMS]
    return sum(node.args[3] is not None for node in batch_norms)  # the fourth argument is the running mean


def _assemble(graph: gs.Graph, source: onnx.ModelProto, opset: int, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The model as it will stand in the file."""
    # What the exporter notes about the machine and the source code is nobody's business downstream.
    source.ClearField("metadata_props")
    model = convert_down(export_model(graph, source), opset)
    _name_nodes(model.graph)
    model.producer_name, model.producer_version = "vsfix", version("vsfix")
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    onnx.helper.set_model_props(model, dict(metadata))
    return model


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Gives a name to each node that has none or another node's."""
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in seen:
            node.name = unused_name(node.name or node.op_type, taken)
        seen.add(node.name)


@stage("checking against torch")
def _check(
    model: onnx.ModelProto, name: str, module: nn.Module, references: Sequence[Reference]
) -> tuple[Agreement, ...]:
    """The agreement of the model with torch; refuses a model that is not valid or does not agree."""
    with NamedTemporaryFile(prefix="vsfix-", suffix=".onnx") as file:
        path = Path(file.name)
        onnx.save(model, path)
        check_model(path)
        agreements = compare_with_torch(path, [_arrays(each.inputs, each.outputs) for each in references])
        if any(not each.snr_db >= MIN_SNR_DB for each in agreements) and not _as_exact_as_torch(
            path, module, references
        ):
            worst = min(agreements, key=lambda each: each.snr_db)
            whose = "" if len(agreements) == 1 else f" in output '{worst.output}'"
            raise CheckFailedError(
                f"{name}: the exported model differs from torch{whose}: SNR {worst.snr_db:.1f} dB, at least"
                f" {MIN_SNR_DB:g} dB is needed, largest difference {worst.max_abs_error:.3g}; not written"
            )
    return agreements


def _arrays(
    inputs: ModuleInputs, outputs: Mapping[str, torch.Tensor]
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Inputs and outputs as numpy has them."""
    return inputs.feeds(), {name: tensor.detach().numpy() for name, tensor in outputs.items()}


def _as_exact_as_torch(path: Path, module: nn.Module, references: Sequence[Reference]) -> bool:
    """Whether a file is as near to the exact result as torch itself: some networks lose decibels in any float32."""
    exact = float64_references(module, references)
    if exact is None:
        return False
    own = {
        name: min(
            snr_db(right.outputs[name].numpy(), approximate.outputs[name].numpy())
            for right, approximate in zip(exact, references, strict=True)
        )
        for name in references[0].outputs
    }
    pairs = [_arrays(each.inputs, right.outputs) for each, right in zip(references, exact, strict=True)]
    return all(
        each.snr_db >= max(own[each.output] - WORSE_THAN_TORCH_DB, LEAST_SNR_DB)
        for each in compare_with_torch(path, pairs)
    )
