from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import helper, numpy_helper

from vsfix.graph_passes.errors import DataError, InputError, ModelError
from vsfix.trainers.differentiable.onnx_call import UnsupportedOperatorError
from vsfix.trainers.differentiable.onnx_evaluation import OnnxModule
from vsfix.trainers.differentiable.refinement import Refinement, RefinementConfig, refine
from vsfix.trainers.differentiable.refinement_target import Target, divergence

from .conftest import CLASSES, FEATURES, KINDS, TRUE_SCALE, N, network, outputs_of, target_of, with_values

STEP = {"g": np.ones(FEATURES), "b": np.ones(FEATURES), "last": np.ones(CLASSES)}
FAST = RefinementConfig(steps=60, learning_rate=0.03, batch_size=16)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_is_its_own_target_keeps_its_bits(kind: str, inputs: dict[str, Any]) -> None:
    model = network(kind)
    result = refine(model, STEP, inputs, {"y": target_of(kind, model, inputs)}, FAST)
    assert result.step == 0
    assert result.losses[0] == pytest.approx(0, abs=1e-12)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, value in result.values.items():
        assert value.tobytes() == stored[name].astype(np.float64).tobytes()


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_scale_is_recovered(kind: str, inputs: dict[str, Any]) -> None:
    model = network(kind)
    truth = with_values(model, g=TRUE_SCALE, last=np.full(CLASSES, 0.2))
    config = RefinementConfig(steps=300, learning_rate=0.03, batch_size=32)
    result = refine(model, STEP, inputs, {"y": target_of(kind, truth, inputs)}, config)
    assert min(result.losses) < 0.01 * result.losses[0]
    refined = with_values(model, **result.values)
    before, after, wanted = (outputs_of(one, inputs) for one in (model, refined, truth))
    if kind in ("logits", "log-softmax"):  # a shift of all scores says nothing
        before, after, wanted = (y.softmax(1) for y in (before, after, wanted))
    assert (after - wanted).square().mean() < 0.02 * (before - wanted).square().mean()


def test_the_values_belong_to_the_step_and_the_loss_that_are_reported(inputs: dict[str, Any]) -> None:
    model = network("values")
    target = target_of("values", with_values(model, g=TRUE_SCALE), inputs)
    result = refine(model, STEP, inputs, {"y": target}, FAST)
    assert len(result.losses) == 1 + FAST.steps // 10
    best = result.losses[result.step // 10]
    assert best == min(result.losses)
    y = outputs_of(with_values(model, **result.values), inputs)
    held_out = (y.numpy() - target.mean)[2::3]
    assert best == pytest.approx(np.square(held_out).mean(), rel=1e-4)


def test_the_order_of_the_free_parameters_is_nothing(inputs: dict[str, Any]) -> None:
    model = network("logits")
    target = {"y": target_of("logits", with_values(model, g=TRUE_SCALE), inputs)}
    one = refine(model, STEP, inputs, target, FAST)
    other = refine(model, dict(reversed(STEP.items())), inputs, target, FAST)
    assert same_bits(one, other)
    assert list(other.values) == list(reversed(STEP))


def same_bits(one: Refinement, other: Refinement) -> bool:
    values = all(one.values[name].tobytes() == other.values[name].tobytes() for name in one.values)
    return values and one.losses == other.losses and one.step == other.step


def test_a_seed_gives_the_same_bits_whatever_was_drawn_before_and_another_one_others(inputs: dict[str, Any]) -> None:
    model = network("logits")
    target = {"y": target_of("logits", with_values(model, g=TRUE_SCALE), inputs)}
    one = refine(model, STEP, inputs, target, FAST)
    torch.manual_seed(123)
    assert same_bits(one, refine(model, STEP, inputs, target, FAST))
    other = RefinementConfig(steps=60, learning_rate=0.03, batch_size=16, seed=1)
    assert not same_bits(one, refine(model, STEP, inputs, target, other))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_small_runs_add_up_to_that_of_the_step(kind: str, inputs: dict[str, Any]) -> None:
    model = network(kind)
    target = target_of(kind, with_values(model, g=TRUE_SCALE), inputs, 0.5)
    whole, parts = (
        refine(model, STEP, inputs, {"y": target}, replace(FAST, run_size=size))
        for size in (None, 5)  # of 16
    )
    assert parts.losses == pytest.approx(whole.losses, rel=1e-3, abs=1e-6)
    np.testing.assert_allclose(parts.values["g"], whole.values["g"], atol=2e-4)


def test_the_state_of_torch_is_left_as_it_was(inputs: dict[str, Any]) -> None:
    model = network("values")
    state = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), model.SerializeToString()
    refine(model, STEP, inputs, {"y": target_of("values", with_values(model, g=TRUE_SCALE), inputs)}, FAST)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (torch.get_num_threads(), torch.is_grad_enabled(), model.SerializeToString()) == state[1:]


def test_it_works_where_a_caller_has_turned_gradients_off(inputs: dict[str, Any]) -> None:
    model = network("values")
    target = {"y": target_of("values", with_values(model, g=TRUE_SCALE), inputs)}
    with torch.no_grad():
        result = refine(model, STEP, inputs, target, FAST)
    assert same_bits(result, refine(model, STEP, inputs, target, FAST))


def test_what_makes_held_out_samples_worse_is_not_taken(inputs: dict[str, Any]) -> None:
    model = network("values")
    here, there = (outputs_of(one, inputs).numpy() for one in (model, with_values(model, g=2 * TRUE_SCALE)))
    mean = there.copy()
    mean[2::3] = here[2::3]  # the samples that are stepped on pull away from those that are not
    result = refine(model, STEP, inputs, {"y": Target("values", 1, mean)}, FAST)
    assert result.losses[-1] > result.losses[0]
    assert result.step == 0
    np.testing.assert_array_equal(result.values["g"], np.ones(FEATURES))


def test_only_the_free_parameters_move_and_a_unit_of_zero_holds_one_still(inputs: dict[str, Any]) -> None:
    model = network("values")
    target = {"y": target_of("values", with_values(model, g=TRUE_SCALE), inputs)}
    result = refine(model, {"g": np.eye(FEATURES)[0]}, inputs, target, FAST)
    assert set(result.values) == {"g"}
    assert result.values["g"][0] != 1
    assert (result.values["g"][1:] == 1).all()


def test_a_unit_scales_what_a_step_does(inputs: dict[str, Any]) -> None:
    model = network("values")
    target = {"y": target_of("values", with_values(model, g=TRUE_SCALE), inputs)}
    config = RefinementConfig(steps=1, learning_rate=1e-3)
    one, ten = (refine(model, {"g": np.full(FEATURES, unit)}, inputs, target, config) for unit in (1.0, 10.0))
    np.testing.assert_allclose(np.abs(one.values["g"] - 1), 1e-3, rtol=1e-4)
    np.testing.assert_allclose(np.abs(ten.values["g"] - 1), 1e-2, rtol=1e-4)


def test_several_outputs_add_up_each_in_units_of_its_own_noise(inputs: dict[str, Any]) -> None:
    model = network("values")
    model.graph.node.append(helper.make_node("Mul", ["y", "thousand"], ["large"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1000), "thousand"))
    model.graph.output.append(helper.make_tensor_value_info("large", onnx.TensorProto.FLOAT, ("n", CLASSES)))
    y = outputs_of(with_values(model, g=TRUE_SCALE), inputs).numpy()
    pull = 0.5  # of the large output, to another value
    units = {"y": Target("values", 1, y, 1.0), "large": Target("values", 1, 1000 * (y + pull), 1e6)}
    ignored = {"y": units["y"], "large": Target("values", 1, 1000 * (y + pull))}
    single = refine(model, STEP, inputs, {"y": units["y"]}, FAST).losses[0]
    both = refine(model, STEP, inputs, units, FAST)
    other = refine(model, STEP, inputs, {"large": units["large"]}, FAST).losses[0]
    assert both.losses[0] == pytest.approx(single + other, rel=1e-6)
    mistaken = refine(model, STEP, inputs, ignored, FAST)

    def error_of_y(result: Refinement) -> float:
        return float(np.abs(outputs_of(with_values(model, **result.values), inputs).numpy() - y).mean())

    assert error_of_y(both) < 0.7 * error_of_y(mistaken)


def test_classes_on_the_wrong_axis_do_not_recover_the_scale(inputs: dict[str, Any]) -> None:
    model = network("logits")
    model.graph.node.append(helper.make_node("Reshape", ["y", "three"], ["map"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, CLASSES, 1]), "three"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("map", onnx.TensorProto.FLOAT, ("n", CLASSES, 1)))
    plain = network("logits")
    mean = target_of("logits", with_values(plain, g=TRUE_SCALE), inputs).mean
    right, wrong = (
        refine(model, STEP, inputs, {"map": Target("logits", axis, mean[..., None])}, FAST) for axis in (1, 2)
    )
    errors = [
        float(
            divergence(
                outputs_of(with_values(plain, **result.values), inputs),
                Target("logits", 1, mean),
                torch.from_numpy(mean),
            )
        )
        for result in (right, wrong)
    ]
    assert errors[0] < 0.1 * errors[1]


def test_a_graph_that_only_declares_its_batch_size_is_run_as_any_other(inputs: dict[str, Any]) -> None:
    target = {"y": target_of("values", with_values(network("values"), g=TRUE_SCALE), inputs)}
    free, declared = (refine(network("values", batch), STEP, inputs, target, FAST) for batch in ("n", "4"))
    assert same_bits(free, declared)


def test_a_graph_that_takes_one_batch_size_is_run_with_it(inputs: dict[str, Any]) -> None:
    model = network("values", batch="5", tail="tall")
    model.graph.node.append(helper.make_node("Reshape", ["y", "shape"], ["tall"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([5, CLASSES]), "shape"))
    target = target_of("values", with_values(network("values"), g=TRUE_SCALE), inputs)
    fixed = refine(model, STEP, inputs, {"tall": target}, FAST)
    free = refine(network("values"), STEP, inputs, {"y": target}, FAST)
    np.testing.assert_allclose(fixed.losses, free.losses, rtol=1e-3)


@pytest.mark.parametrize("batch", ["n", "5"])
def test_an_input_without_samples_is_the_same_for_all(batch: str, inputs: dict[str, Any]) -> None:
    plain, model = network("values"), network("values", batch, tail="louder")
    model.graph.node.append(helper.make_node("Mul", ["y", "gain"], ["loud"]))
    model.graph.node.append(helper.make_node("Reshape", ["loud", "shape"], ["louder"]))
    shape = np.array([5 if batch == "5" else -1, CLASSES])
    model.graph.initializer.append(numpy_helper.from_array(shape, "shape"))
    model.graph.input.append(helper.make_tensor_value_info("gain", onnx.TensorProto.FLOAT, ()))
    mean = outputs_of(with_values(plain, g=TRUE_SCALE), inputs).numpy()
    one = refine(plain, STEP, inputs, {"y": Target("values", 1, mean)}, FAST)
    scalar = {**inputs, "gain": np.float32(2)}
    two = refine(model, STEP, scalar, {"louder": Target("values", 1, 2 * mean, 4.0)}, FAST)
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-3)


def test_a_free_constant_that_others_depend_on_is_not_computed_beforehand(inputs: dict[str, Any]) -> None:
    model = network("values")
    model.graph.node.insert(0, helper.make_node("Mul", ["g", "g"], ["g2"]))
    add = next(node for node in model.graph.node if node.output[0] == "z")
    model.graph.node.insert(1, helper.make_node("ReduceMean", ["g2"], ["level"], keepdims=0))
    add.input[0] = "shifted"
    model.graph.node.insert(len(model.graph.node) - 2, helper.make_node("Mul", ["p", "level"], ["shifted"]))
    module = OnnxModule(model, free=["g"])
    x = {"x": torch.from_numpy(inputs["x"])}
    moved = module(x, parameters={"g": torch.full((FEATURES,), 2.0)}).outputs["y"]
    torch.testing.assert_close(moved.double(), outputs_of(with_values(model, g=np.full(FEATURES, 2)), inputs))
    torch.testing.assert_close(module(x).outputs["y"].double(), outputs_of(model, inputs))


@pytest.mark.parametrize("batch", ["n", "5"])
@pytest.mark.parametrize("kind", ["logits", "values"])
def test_several_rows_of_a_sample_are_what_positions_of_it_are(kind: str, batch: str, inputs: dict[str, Any]) -> None:
    """Each sample is two rows, its own and one of half its size; the positions that are chosen run through both."""
    model, plain = network(kind, batch, tail="rows"), network(kind)
    nodes = model.graph.node
    nodes.insert(0, helper.make_node("Mul", ["x", "sizes"], ["both"]))
    nodes.insert(0, helper.make_node("Reshape", ["whole", "pairs"], ["x"]))
    nodes.insert(2, helper.make_node("Reshape", ["both", "flat"], ["rows_in"]))
    next(node for node in nodes if node.output[0] == "h").input[0] = "rows_in"
    nodes.append(helper.make_node("Reshape", ["y", "last_shape"], ["rows"]))
    model.graph.input[0].name = "whole"
    constants = {
        "sizes": np.array([1, 0.5], np.float32).reshape(1, 2, 1),
        "pairs": np.array([-1, 1, FEATURES]),
        "flat": np.array([10 if batch == "5" else -1, FEATURES]),
        "last_shape": np.array([-1, CLASSES]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "m"
    truth = with_values(plain, g=TRUE_SCALE)
    pair = [target_of(kind, truth, {"x": scale * inputs["x"]}).mean for scale in (np.float32(1), np.float32(0.5))]
    mean = np.stack(pair, axis=1)
    whole = {"whole": inputs["x"]}
    rows = refine(model, STEP, whole, {"rows": Target(kind, 1, mean.reshape(-1, CLASSES))}, FAST)
    assert min(rows.losses) < 0.1 * rows.losses[0]
    chosen = np.arange(2 if kind == "logits" else 2 * CLASSES)
    chosen_mean = mean if kind == "logits" else mean.reshape(N, -1)
    positions = refine(model, STEP, whole, {"rows": Target(kind, 1, chosen_mean, chosen=chosen)}, FAST)
    np.testing.assert_allclose(positions.losses, rows.losses, rtol=1e-6)
    first = refine(model, STEP, whole, {"rows": Target(kind, 1, chosen_mean[:, :1], chosen=chosen[:1])}, FAST)
    if kind == "logits":
        alone = refine(plain, STEP, inputs, {"y": Target(kind, 1, pair[0])}, FAST)
        np.testing.assert_allclose(first.losses, alone.losses, rtol=1e-3)


def test_a_free_name_that_is_not_there_is_refused(inputs: dict[str, Any]) -> None:
    model = network("values")
    target = {"y": target_of("values", model, inputs)}
    with pytest.raises(InputError, match="'h' is no initializer"):
        refine(model, {"h": np.ones(1)}, inputs, target)
    with pytest.raises(InputError, match="'h' is no initializer"):
        OnnxModule(model, free=["h"])
    with pytest.raises(InputError, match="'b' is not among"):
        OnnxModule(model, free=["g"])({"x": torch.zeros(2, FEATURES)}, parameters={"b": torch.zeros(FEATURES)})
    with pytest.raises(InputError, match=r"unit of 'g'.*\(6,\)"):
        refine(model, {"g": np.ones(2)}, inputs, target)
    with pytest.raises(InputError, match="'q' is no output"):
        refine(model, STEP, inputs, {"q": target["y"]})
    with pytest.raises(InputError, match="nothing to refine"):
        refine(model, {}, inputs, target)


def test_samples_that_do_not_fit_are_refused(inputs: dict[str, Any]) -> None:
    model = network("values")
    with pytest.raises(DataError, match=r"\[47, 48\] samples"):
        refine(model, STEP, inputs, {"y": Target("values", 1, np.zeros((N - 1, CLASSES)))})
    with pytest.raises(DataError, match="2 at least"):
        refine(model, STEP, {"x": inputs["x"][:1]}, {"y": Target("values", 1, np.zeros((1, CLASSES)))})
    with pytest.raises(DataError, match="not finite"):
        refine(model, STEP, inputs, {"y": Target("values", 1, np.full((N, CLASSES), np.nan))})
    with pytest.raises(DataError, match=r"shape \(16, 4\) has a target of shape \(16, 1\)"):
        refine(model, STEP, inputs, {"y": Target("values", 1, np.zeros((N, 1)))}, FAST)


def test_two_samples_are_enough(inputs: dict[str, Any]) -> None:
    model = network("values")
    mean = outputs_of(with_values(model, g=TRUE_SCALE), inputs).numpy()[:2]
    result = refine(model, STEP, {"x": inputs["x"][:2]}, {"y": Target("values", 1, mean)}, FAST)
    assert min(result.losses) <= result.losses[0]


def test_an_operator_that_can_not_be_differentiated_is_named(inputs: dict[str, Any]) -> None:
    model = network("values")
    model.graph.node[2].op_type = "Asinh"
    with pytest.raises(UnsupportedOperatorError, match="Asinh"):
        refine(model, STEP, inputs, {"y": Target("values", 1, np.zeros((N, CLASSES)))})


def test_a_parameter_that_no_output_depends_on_is_refused(inputs: dict[str, Any]) -> None:
    model = network("values")
    model.graph.node[-1].CopyFrom(helper.make_node("Identity", ["x"], ["y"]))
    with pytest.raises(UnsupportedOperatorError, match="no gradient"):
        refine(model, STEP, inputs, {"y": Target("values", 1, np.zeros((N, FEATURES)))})


def test_a_loss_that_is_not_finite_is_refused(inputs: dict[str, Any]) -> None:
    model = with_values(network("values"), last=np.full(CLASSES, np.inf))
    with pytest.raises(ModelError, match="not finite"):
        refine(model, STEP, inputs, {"y": Target("values", 1, np.zeros((N, CLASSES)))})


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": np.nan},
        {"batch_size": 0},
        {"seed": -1},
        {"held_out": 0.0},
        {"held_out": 0.6},
    ],
)
def test_a_configuration_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="refinement"):
        RefinementConfig(**wrong)
