"""A torch module as an ONNX graph, its noise as opaque operators: traced by torch.export, written by torch.onnx.

Before: what a module must be to be exported, and the outputs that its file will be measured against.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from typing import Any, cast

import onnx
import torch
from torch import nn
from torch.utils import _pytree as pytree

from vsfix.graph_passes.errors import InputError, ModelError, first_line
from vsfix.graph_passes.noise.noise import Noise
from vsfix.graph_passes.progress import stage

from .module_signature import OUTPUT, ModuleInputs, output_tensors, traced_shapes
from .noise_tracing import NoiseTracer, tracing_noise
from .onnx_cleaning import EXPORTER_OPSET, fold_constants

_MAX_BYTES = 2**31  # of one protobuf message
_ANY_BATCH = 2**31  # no bound below that is torch's own
_CHATTY_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


def require_exportable(module: nn.Module, inputs: ModuleInputs) -> None:
    """Refuses what can be known to be wrong before the module runs.

    Raises:
        InputError: arguments that the forward does not take, no sample, another dtype than float32, another device
            than the CPU, 2 GiB, or TorchScript.
    """
    args, kwargs = inputs.arguments()
    try:
        inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"{type(module).__name__}.forward: {error}; give an example of each input") from None
    for name, tensor in zip(inputs.names, inputs.tensors, strict=True):
        if tensor.numel() == 0 or (tensor.dim() < 1 and inputs.batch is not None) or not inputs.tensors[0].dim():
            raise InputError(
                f"the example of '{name}' has shape {tuple(tensor.shape)}; give a batch of at least one input"
            )
    scripted = [name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripted:
        label = f"its part '{scripted[0]}'" if scripted[0] else "it"
        raise InputError(f"{type(module).__name__}: {label} is TorchScript; export the Python module it was made from")
    state = [*module.parameters(), *module.buffers()]
    dtypes = {tensor.dtype for tensor in state if tensor.is_floating_point()} - {torch.float32}
    if dtypes:
        raise InputError(f"the module is {dtypes.pop()}; convert it with .float() before the export")
    devices = {tensor.device.type for tensor in (*state, *inputs.tensors)} - {"cpu"}
    if devices:
        raise InputError(f"the module or the example is on {devices.pop()}; move both with .cpu() before the export")
    if sum(tensor.numel() * tensor.element_size() for tensor in state) >= _MAX_BYTES:
        raise InputError("the module's weights take 2 GiB or more, which one ONNX file can't hold")


@dataclass(frozen=True, eq=False)
class Reference:
    """What torch gives for inputs.

    Attributes:
        inputs: of one run.
        outputs: by their names in the file.
    """

    inputs: ModuleInputs
    outputs: Mapping[str, torch.Tensor]


def torch_references(module: nn.Module, inputs: ModuleInputs) -> list[Reference]:
    """Torch's outputs for the inputs, for one sample, and with every other free axis in another size.

    Args:
        module: in eval mode.
        inputs: at least two samples, unless the size of the batch is fixed.

    Raises:
        InputError: an output that is no tensor or not finite, a first output without batch axis, a free axis that the
            module takes in one size only.
        ModelError: the module fails on the inputs.
    """
    runs = [inputs]
    batch = inputs.batch
    if batch is not None:
        runs.append(inputs.resized({batch: 1}))
    references = [Reference(run, _run(module, run)) for run in runs]
    if batch is not None:
        _require_batch_axis(module, references, inputs.sizes[batch])
    references += [_resized_reference(module, inputs, name) for name in inputs.sizes if name != batch]
    for reference in references:
        for name, out in reference.outputs.items():
            if not bool(out.isfinite().all()):
                raise InputError(
                    f"{type(module).__name__} gives values that are not finite on the example"
                    f"{'' if name == OUTPUT else f' (output {name})'}; give a real input"
                )
    return references


def _require_batch_axis(module: nn.Module, references: Sequence[Reference], samples: int) -> None:
    """Refuses a first output that does not keep the batch as its first axis."""
    shapes = [tuple(next(iter(reference.outputs.values())).shape) for reference in references]
    tail = shapes[0][1:]
    if shapes != [(samples, *tail), (1, *tail)]:
        raise InputError(
            f"{type(module).__name__} gives shape {shapes[0]} for {samples} inputs and {shapes[1]} for one: the batch"
            " must stay the first axis (a squeeze() without its axis is the usual reason)"
        )


def _resized_reference(module: nn.Module, inputs: ModuleInputs, name: str) -> Reference:
    """The outputs where one free axis has twice its size, or half of it where the module does not take that."""
    size = inputs.sizes[name]
    for other in (2 * size, size // 2):
        if other < 2:
            continue
        run = inputs.resized({name: other})
        try:
            return Reference(run, _run(module, run))
        except ModelError as error:
            reason = str(error)
    raise InputError(f"the axis {name} is not free: {reason}; write its size, {size}, in the place of its name")


def float64_references(module: nn.Module, references: Sequence[Reference]) -> list[Reference] | None:
    """The outputs of the module in float64, or None where it can't (a forward that insists on float32).

    Args:
        module: in eval mode; not changed.
        references: whose inputs are taken.
    """
    try:
        double = copy.deepcopy(module).double()
        return [replace(each, outputs=_run(double, each.inputs.double())) for each in references]
    except Exception:  # a copy, and a forward in another type, may fail in any way; float32 did not
        return None


def _run(module: nn.Module, inputs: ModuleInputs) -> dict[str, torch.Tensor]:
    """The outputs by their names."""
    try:
        out = inputs.call(module)
    except Exception as error:  # a forward is foreign code: it may raise anything
        hint = _of_indices(module, inputs)
        raise ModelError(f"{type(module).__name__} fails on an input of {inputs}: {first_line(error)}{hint}") from error
    return output_tensors(out, type(module).__name__, inputs.names)


def _of_indices(module: nn.Module, inputs: ModuleInputs) -> str:
    """What to write where a module that fails runs on zeros once they are whole numbers; empty where it doesn't."""
    floats = [index for index, tensor in enumerate(inputs.tensors) if tensor.is_floating_point()]
    choices = [*([index] for index in floats), *([floats] if len(floats) > 1 else [])]
    found = next((chosen for chosen in choices if _runs_on_zeros(module, inputs, chosen, torch.int64)), None)
    if found is None or _runs_on_zeros(module, inputs, found, torch.float32):  # then it is about the values
        return ""
    last = min((part.num_embeddings for part in module.modules() if isinstance(part, nn.Embedding)), default=100) - 1
    options = []
    for index in found:
        free = {axis: f"{name}={inputs.sizes[name]}" if axis else "N" for axis, name in inputs.axes[index].items()}
        shape = "x".join(str(free.get(axis, side)) for axis, side in enumerate(inputs.tensors[index].shape))
        options.append(f"--input {inputs.names[index]}:{shape}:int64:0..{last}")
    return f"; it takes whole numbers: write {' '.join(options)}, or give an example of torch.int64"


def _runs_on_zeros(module: nn.Module, inputs: ModuleInputs, chosen: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether the module runs where these inputs are zeros of a type."""
    tensors = list(inputs.tensors)
    for index in chosen:
        tensors[index] = torch.zeros_like(tensors[index], dtype=dtype)
    try:
        replace(inputs, tensors=tuple(tensors)).call(module)
    except Exception:  # foreign code, as above
        return False
    return True


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silences the libraries below: their notes on missing optional parts and on their own deprecations."""
    levels = [(logger, logger.level) for logger in map(logging.getLogger, _CHATTY_LOGGERS)]
    try:
        for logger, _ in levels:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


@stage("tracing the module")
def trace_module(
    module: nn.Module, inputs: ModuleInputs, layers: Mapping[str, Noise]
) -> tuple[torch.export.ExportedProgram, NoiseTracer]:
    """The module as a graph of torch operators, with free axes, its outputs in a flat tuple, and the noise in it.

    Args:
        module: in eval mode.
        inputs: an example; a free axis of at least 2.
        layers: the noise that modules make by hand, by their names.

    Raises:
        InputError: noise that can't be marked.
        ModelError: torch can't trace the module.
    """
    args, kwargs = inputs.arguments()
    free_args, free_kwargs = inputs.per_axis(lambda _: torch.export.Dim.DYNAMIC)
    shapes = dict(inspect.signature(module.forward).bind(*free_args, **free_kwargs).arguments)
    # On an error torch prints the graph so far, whatever its loggers are set to.
    with tracing_noise(module, layers) as tracer, _flat_outputs(module), redirect_stderr(io.StringIO()):
        try:
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch.export has no common class for what it refuses
            if tracer.error is not None:
                raise tracer.error from None
            raise ModelError(
                f"{type(module).__name__}: torch.export can't trace it: {_fixed_axis(error, inputs)}"
            ) from error
    _require_any_batch(module, program)
    return program, tracer


def _require_any_batch(module: nn.Module, program: torch.export.ExportedProgram) -> None:
    """Refuses a forward that does another thing for larger batches: the file would hold one of both."""
    sides = (shape[0] for shape in traced_shapes(program).values() if shape)
    for side in (side for side in sides if isinstance(side, torch.SymInt)):
        known = program.range_constraints.get(side.node.expr)
        if known is not None and getattr(known.upper, "is_Integer", False) and known.upper < _ANY_BATCH:
            raise ModelError(
                f"{type(module).__name__}: its forward does another thing for more than {known.upper} samples at once, "
                "and a file shows one of both; let it do the same for any number"
            )


@contextmanager
def _flat_outputs(module: nn.Module) -> Iterator[None]:
    """Lets the module return a tuple of its tensors, no two of them the same, and none an input."""

    def flatten(
        _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: object
    ) -> tuple[torch.Tensor, ...]:
        seen = {id(leaf) for leaf in pytree.tree_leaves((args, dict(kwargs)))}
        tensors = []
        for tensor in output_tensors(out, type(module).__name__).values():
            tensors.append(tensor.clone() if id(tensor) in seen else tensor)
            seen.add(id(tensor))
        return tuple(tensors)

    handle = module.register_forward_hook(flatten, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _fixed_axis(error: BaseException, inputs: ModuleInputs) -> str:
    """Why torch.export refused, with the names of the axes that the forward fixes."""
    reason = _reason(error)
    fixed = re.findall(r"L\['(\w+)'\]\S*?\.size\(\)\[(\d+)\]", reason) if "Constraints violated" in reason else []
    if not fixed:
        return reason
    axes = dict(zip(inputs.names, inputs.axes, strict=True))
    known = [axes[name] if name in axes else next(iter(inputs.axes)) for name, _ in fixed]
    names = [free.get(int(axis), axis) for free, (_, axis) in zip(known, fixed, strict=True)]
    if names[0] == inputs.batch:
        return "its forward fixes the batch size; write x.shape[0] or -1 there instead of a number or len(x)"
    shown = ", ".join(dict.fromkeys(names))
    return (
        f"its forward fixes the axis {shown}; write x.shape[{fixed[0][1]}] there instead of a number, or its size in "
        "the shape of the input"
    )


@stage("converting to ONNX")
def convert_program(
    program: torch.export.ExportedProgram, inputs: ModuleInputs, outputs: Sequence[str], opset: int
) -> onnx.ModelProto:
    """The program in ONNX, with the opaque operators still in it.

    Args:
        program: what was traced.
        inputs: the names of the graph's inputs, and of their free axes.
        outputs: the names of the graph's outputs.
        opset: of the file; torch's exporter writes none below `EXPORTER_OPSET`, and the model has that one then.

    Raises:
        InputError: the installed exporter can't write the opset.
        ModelError: torch can't convert the program.
    """
    written = max(opset, EXPORTER_OPSET)
    args, kwargs = inputs.per_axis(lambda name: name)
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            opset_version=written,
            verbose=False,
            input_names=list(inputs.names),
            output_names=list(outputs),
            dynamic_shapes=(*args, *kwargs.values()),
        )
        model = fold_constants(cast("torch.onnx.ONNXProgram", exported).model)
        _name_outputs(model.graph, outputs)
    except Exception as error:  # nor has the ONNX exporter
        raise ModelError(f"torch.onnx can't convert the module: {_reason(error)}") from error
    found = {entry.domain: entry.version for entry in model.opset_import}.get("")
    if found != written:
        raise InputError(f"opset {opset}: the installed onnxscript can't write it; take {EXPORTER_OPSET}")
    return model


def _name_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Gives a tensor that is an output twice, whose copies were taken for identities, both of its names again."""
    for output, name in zip(graph.output, names, strict=True):
        if output.name != name:
            graph.node.add(op_type="Identity", input=[output.name], output=[name])
            output.name = name


def _reason(error: BaseException) -> str:
    """The first line of what started a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
