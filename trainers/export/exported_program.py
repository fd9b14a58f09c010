"""An ExportedProgram as a module that deploys: its noise as layers, its BatchNorms on their stored statistics.

torch.export.export keeps a Dropout as an operator with its ratio, in eval mode too, and a program in training mode has
it switched on. Either becomes a layer of its own here, under the name that its module had, and what comes out is
exported as any module. Gone is what only Python knows: noise made by hand in a program of eval mode, and after
`run_decompositions` the Dropouts as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from vsfix.graph_passes.errors import InputError, ModelError, first_line

from .example_inputs import given_arguments
from .module_signature import BATCH, INPUT, ModuleInputs, traced_shapes
from .noise_reach import random_states_kept

_aten = torch.ops.aten
_NOISE: Mapping[Any, Callable[..., Any]] = {
    _aten.dropout.default: torch.dropout,
    _aten.dropout_.default: torch.dropout,
    _aten.native_dropout.default: torch.dropout,
    _aten.feature_dropout.default: torch.feature_dropout,
    _aten.feature_dropout_.default: torch.feature_dropout,
    _aten.alpha_dropout.default: torch.alpha_dropout,
    _aten.alpha_dropout_.default: torch.alpha_dropout,
    _aten.feature_alpha_dropout.default: torch.feature_alpha_dropout,
    _aten.feature_alpha_dropout_.default: torch.feature_alpha_dropout,
}
_TRAINING, _RATIO = 5, 1  # the places of these arguments, of batch_norm and of the dropouts
_ATTENTION_DROPOUT = 4
_DECOMPOSED = frozenset(
    {
        _aten._native_batch_norm_legit_functional.default,
        _aten._native_batch_norm_legit.default,
        _aten.native_batch_norm.default,
    }
)


class _NoiseLayer(nn.Module):
    """A call of a noise function, by a layer of its own."""

    def __init__(self, function: Callable[..., Any], ratio: float) -> None:
        super().__init__()
        self._function, self._ratio = function, ratio

    def forward(self, x: torch.Tensor) -> Any:
        """The noise in training mode; else x."""
        return self._function(x, self._ratio, self.training)


def deployed_program(program: torch.export.ExportedProgram) -> tuple[nn.Module, tuple[str, ...]]:
    """The module of a program, and what noise it can't show.

    Args:
        program: of `torch.export.export`, in eval or in training mode; not changed.

    Raises:
        ModelError: it was decomposed in training mode, or its graph draws random numbers by hand.
    """
    traced = program.module(check_guards=False)
    module = fx.GraphModule(traced, traced.graph)
    in_training, unmarked = False, []
    for node in list(module.graph.nodes):
        if node.target in _DECOMPOSED:
            raise ModelError(
                "the ExportedProgram was decomposed in training mode, which can't be undone; give what "
                "torch.export.export returned, before run_decompositions"
            )
        if node.target in _NOISE:
            in_training |= bool(node.args[2]) if len(node.args) > 2 else False
            _replace_noise(module, node)
        elif node.target is _aten.batch_norm.default and node.args[_TRAINING] and node.args[3] is not None:
            in_training = True
            node.update_arg(_TRAINING, False)
        elif node.target is _aten.scaled_dot_product_attention.default and _attention_ratio(node):
            in_training = True
            unmarked.append(f"the noise on the weights of an attention (dropout_p={_attention_ratio(node):g})")
            _switch_off_attention(node)
        elif node.target is _aten.add_.Tensor and "num_batches_tracked" in str(getattr(node.args[0], "target", "")):
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    if program.dialect != "TRAINING":
        unmarked.append("the Dropouts that the module may have: the ExportedProgram was decomposed, which drops them")
    elif not in_training:
        unmarked.append("noise that layers may make by hand: the ExportedProgram was traced in eval mode")
    return module, tuple(unmarked)


def _replace_noise(module: fx.GraphModule, node: fx.Node) -> None:
    """Puts a layer in the place of a noise operator."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]).replace("@", "_") if stack else ""
    is_layer = bool(path) and isinstance(_part(module, path), _NoiseLayer | None)
    base = path if is_layer else ".".join(part for part in (path, "dropout") if part)
    name, number = base, 2
    while _part(module, name) is not None:
        name, number = f"{base}_{number}", number + 1
    module.add_submodule(name, _NoiseLayer(_NOISE[node.target], float(str(node.args[_RATIO]))))
    with module.graph.inserting_after(node):
        layer = module.graph.call_module(name, (node.args[0],))
    if node.target is _aten.native_dropout.default:  # gives the mask too
        for user in list(node.users):
            if user.target is getitem and user.args[1] == 0:
                user.replace_all_uses_with(layer)
                module.graph.erase_node(user)
        return
    node.replace_all_uses_with(layer)
    module.graph.erase_node(node)


def _part(module: nn.Module, path: str) -> object:
    """What a module has under a path; None where that is nothing."""
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _attention_ratio(node: fx.Node) -> float:
    """The drop ratio of an attention."""
    given = node.args[_ATTENTION_DROPOUT] if len(node.args) > _ATTENTION_DROPOUT else node.kwargs.get("dropout_p")
    return given if isinstance(given, float) else 0.0


def _switch_off_attention(node: fx.Node) -> None:
    if len(node.args) > _ATTENTION_DROPOUT:
        node.update_arg(_ATTENTION_DROPOUT, 0.0)
    else:
        node.update_kwarg("dropout_p", 0.0)


def program_inputs(program: torch.export.ExportedProgram, example: object = None) -> ModuleInputs:
    """Example inputs of a program, and its free axes.

    Args:
        program: says what its inputs are called.
        example: a tensor, a tuple of the arguments in order, or a dict of them by name; None takes the inputs that the
            program was traced with.

    Raises:
        InputError: it holds none, others are wanted, or inputs that are no tensors.
    """
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    if example is not None:
        args, kwargs = given_arguments(example)
        kwargs = _in_order(kwargs, names) if isinstance(example, Mapping) else kwargs
    elif program.example_inputs is not None:
        args, kwargs = program.example_inputs
    else:
        raise InputError("the ExportedProgram holds no example inputs; give example_inputs")
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    shapes = traced_shapes(program)
    if len(leaves) != len(names) or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        raise InputError(f"the ExportedProgram takes {', '.join(names)}; give a tensor for each in example_inputs")
    symbols: dict[str, str] = {}
    axes = [
        {
            axis: symbols.setdefault(str(side), BATCH if axis == 0 else f"{name}_{axis}")
            for axis, side in enumerate(shapes[name])
            if isinstance(side, torch.SymInt)
        }
        for name in names
    ]
    tensors = tuple(leaf.detach().clone() for leaf in leaves)
    return ModuleInputs((INPUT,) if len(names) == 1 else tuple(names), tensors, tuple(axes), spec)


def _in_order(example: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Arguments by name in the order of the program, in which what stands inside one of them is called after it."""
    found = {}
    for name in names:
        owners = [key for key in example if name == key or name.startswith(f"{key}_")]
        if not owners:
            raise InputError(f"the ExportedProgram takes {', '.join(names)}; give example_inputs by these names")
        key = max(owners, key=len)
        found[key] = example[key]
    return found


def require_deterministic(module: nn.Module, inputs: ModuleInputs) -> None:
    """Refuses a program that draws random numbers although its noise layers are off.

    Raises:
        InputError: it does not take these inputs.
        ModelError: naming the operators that may draw.
    """
    with torch.no_grad(), random_states_kept():
        torch.manual_seed(0)
        try:
            first = pytree.tree_leaves(inputs.call(module.eval()))
        except Exception as error:  # whatever an operator raises for another shape or type
            raise InputError(f"the ExportedProgram fails on an input of {inputs}: {first_line(error)}") from error
        torch.manual_seed(1)
        second = pytree.tree_leaves(inputs.call(module))
    if all(_are_equal(one, two) for one, two in zip(first, second, strict=True) if isinstance(one, torch.Tensor)):
        return
    assert isinstance(module, fx.GraphModule)
    drawing = {
        str(node.target)
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags
    }
    raise ModelError(
        f"the graph of the ExportedProgram draws random numbers by hand ({', '.join(sorted(drawing))}); trace the "
        "module in eval mode, or export the module itself, so that its noise is marked"
    )


def _are_equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether all values are the same; NaN is NaN, for nothing was drawn."""
    return one.shape == two.shape and bool(((one == two) | (one.isnan() & two.isnan())).all())
