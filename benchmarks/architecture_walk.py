"""One network from torch to a repaired, folded ONNX file, and what is asked of it; see `architectures`."""

from __future__ import annotations

import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import torch
from architecture_catalogue import BATCH_NORM, Row, build, first_line
from torch import nn

from vsfix.graph_passes.errors import CheckFailedError, InputError, VsfixError
from vsfix.graph_passes.io.model_file import import_graph, read_model, write_model
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.comparison.tensor_comparison import compare_tensors
from vsfix.pipeline.inspection.inspection import inspect_graph
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig
from vsfix.pipeline.repair.repair_report import Repair
from vsfix.trainers.export.onnx_export import ExportResult, export_onnx

SAMPLES = 16
SIDES = (64, 96, 128, 192, 224, 256, 288, 320, 384, 448)  # of the image, the first that the network takes
FRAMES = 8
MIN_SNR_DB = 60.0


class SkipError(Exception):
    """The network lies outside what is asked here."""


def walk(name: str, max_parameters: float, folder: Path) -> Row:
    """Takes one network all the way, with its files in the folder; the row says how far it came."""
    row: Row = {"stage": "create"}
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _walk(name, max_parameters, folder, row)
        row |= {"status": "PASS", "reason": ""}
    except SkipError as reason:
        row |= {"status": "SKIP", "reason": str(reason)}
    except Exception as error:
        row |= {"status": "FAIL", "whose": row.get("whose", "vsfix"), "reason": first_line(error)}
        row["trace"] = traceback.format_exc()[-6000:]
        if "memory" in row["reason"] and "allocate" in row["reason"]:
            row["whose"] = "limit"
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def _walk(name: str, max_parameters: float, folder: Path, row: Row) -> None:
    """Fills the row, stage by stage."""
    torch.manual_seed(0)
    row["whose"] = name.partition("/")[0]
    net = build(name)
    count = sum(isinstance(part, BATCH_NORM) for part in net.modules())
    row["parameters"] = sum(parameter.numel() for parameter in net.parameters())
    if not count:
        raise SkipError("no BatchNorm")
    if row["parameters"] > max_parameters:
        raise SkipError(f"more than {max_parameters / 1e6:g} M parameters")
    row["stage"] = "statistics"
    shape = fitting_shape(net)
    row["input"] = "x".join(map(str, shape))
    images = make_images(3 * SAMPLES, shape)
    set_statistics(net, images[SAMPLES:])
    calibration = images[:SAMPLES]
    row["stage"], row["whose"] = "export", "vsfix"
    exported = export(net, calibration[:2], folder / "model.onnx", row)
    row["export_snr_db"] = exported.snr_db
    row["stage"] = "inspect"
    model = read_model(folder / "model.onnx")
    batches = [{"input": calibration.numpy()}]
    inspect(model, batches, net, calibration, row)
    if exported.unmarked:
        raise CheckFailedError(f"the file does not show {'; '.join(exported.unmarked)}")
    row["stage"] = "repair"
    repair = repair_model(model, batches, open_for_small_runs, RepairConfig())
    report = repair.report
    row["method"] = report.method
    row["repaired"] = sum(outcome.repaired for outcome in report.batch_norms)
    row["folded"] = sum(outcome.folded for outcome in report.batch_norms)
    reached = [outcome for outcome in report.batch_norms if outcome.before.noise and not outcome.repaired]
    row["kept"] = dict(Counter(re.sub(r"[-\d.]+", "#", outcome.action)[:120] for outcome in reached))
    row["stage"] = "verify"
    write_model(repair.model, folder / "repaired.onnx", force=False)
    onnx.checker.check_model(str(folder / "repaired.onnx"), full_check=True)
    verify(repair, net, calibration, row)


def fitting_shape(net: nn.Module) -> tuple[int, ...]:
    """The smallest input that the network takes, without the batch."""
    settings: Mapping[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    channels, *stated = settings.get("input_size", (3, 224, 224))
    sides = (stated[0],) if settings.get("fixed_input_size") else SIDES
    frames = (FRAMES, 2 * FRAMES) if is_video(net) else (None,)
    problem: Exception | None = None
    for side in sides:
        for length in frames:
            shape = (channels, *([] if length is None else [length]), side, side)
            try:
                with torch.no_grad():
                    net.eval()(torch.zeros(2, *shape))
                    net.train()(torch.rand(2, *shape))
                return shape
            except Exception as error:  # foreign code
                problem = error
    raise SkipError(f"takes no single image of {sides[0]} to {sides[-1]} pixels: {first_line(problem)}")


def is_video(net: nn.Module) -> bool:
    """Whether the first convolution goes over time too."""
    first = next((part for part in net.modules() if isinstance(part, nn.modules.conv._ConvNd)), None)
    return isinstance(first, nn.Conv3d)


def make_images(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Smooth random images, float32 (N, *shape), always the same ones."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(count, *shape[:-2], 8, 8))
    # Each cell repeated, and fine noise on top: content at two scales.
    images = np.repeat(np.repeat(coarse, -(-shape[-2] // 8), -2), -(-shape[-1] // 8), -1)
    images = images[..., : shape[-2], : shape[-1]] + 0.3 * rng.normal(size=(count, *shape))
    return torch.from_numpy(images.astype(np.float32))


def set_statistics(net: nn.Module, images: torch.Tensor) -> None:
    """Makes parameters that are constant different, and gives the BatchNorms the statistics of training mode."""
    norms = [part for part in net.modules() if isinstance(part, BATCH_NORM)]
    with torch.no_grad():
        for parameter in net.parameters():
            # A scale of 0 or 1e-6 would hide whatever stands in front of it.
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
        net.train()
        for batch in images.split(SAMPLES):
            net(batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    net.eval()


def export(net: nn.Module, example: torch.Tensor, path: Path, row: Row) -> ExportResult:
    """The file; says in the row whose fault it is where there is none."""
    try:
        return export_onnx(net, example, path)
    except InputError as error:  # what the network is, not how it fails
        raise SkipError(first_line(error)) from error
    except VsfixError:
        row["whose"] = blame(net, example, path.with_name("plain.onnx"))
        raise


def blame(net: nn.Module, example: torch.Tensor, path: Path) -> str:
    """Who else fails on the network when vsfix is not there."""
    net.eval()
    dynamic = ({0: torch.export.Dim("batch")},)
    try:
        with torch.no_grad():
            program = torch.export.export(net, (example,), dynamic_shapes=dynamic, strict=False)
    except Exception:
        return "torch.export"
    try:
        torch.onnx.export(program, dynamo=True, optimize=False, dynamic_shapes=({0: "batch"},)).save(path)
    except Exception:
        return "torch.onnx"
    try:
        snr = difference(net, onnx.load(path), example)
    except Exception:
        return "torch.onnx, the file does not run"
    return "vsfix" if snr >= MIN_SNR_DB else f"torch.onnx, the file differs from torch (SNR {snr:.0f} dB)"


def difference(net: nn.Module, model: onnx.ModelProto, images: torch.Tensor) -> float:
    """SNR of the file against torch in dB."""
    with torch.no_grad(), open_for_small_runs(model) as session:
        expected = net.eval()(images.clone())
        (found,) = session.run({model.graph.input[0].name: images.numpy()}).values()
    return float(compare_tensors(expected.numpy(), found).snr_db)


def inspect(
    model: onnx.ModelProto, batches: Sequence[Mapping[str, Any]], net: nn.Module, images: torch.Tensor, row: Row
) -> None:
    """Looks at the file, and compares what the noise reaches with torch.

    Raises:
        CheckFailedError: they differ.
    """
    graph = import_graph(model)
    inspection = inspect_graph(graph, batches, open_for_small_runs)
    row["nodes"] = len(graph.nodes)
    row["batch_norms"] = len(inspection.rows)
    kinds = Counter(source.rsplit(" ", 1)[-1].partition(":")[0] for source in inspection.noise_sources)
    row["noise"] = dict(kinds)
    found = {entry.name for entry in inspection.rows if entry.noise}
    row["reached"] = len(found)
    truth = reached_in_torch(net, images) & {entry.name for entry in inspection.rows}
    row["missed"], row["extra"] = sorted(truth - found), sorted(found - truth)
    if found != truth:
        raise CheckFailedError(f"the noise reaches {len(found)} BatchNorms, in torch {len(truth)}")


def reached_in_torch(net: nn.Module, images: torch.Tensor) -> set[str]:
    """The BatchNorms whose input changes from run to run while the noise is on and they use what they have stored."""
    inputs: dict[str, list[torch.Tensor]] = {}
    handles = [
        part.register_forward_pre_hook(keeping(inputs.setdefault(name, [])))
        for name, part in net.named_modules()
        if isinstance(part, BATCH_NORM)
    ]
    try:
        with torch.no_grad(), strong_noise(net):
            for seed in (1, 2):
                torch.manual_seed(seed)
                net(images.clone())
    finally:
        for handle in handles:
            handle.remove()
    reached = set()
    for name, seen in inputs.items():
        half = len(seen) // 2
        if any(not torch.equal(one, other) for one, other in zip(seen[:half], seen[half:], strict=True)):
            reached.add(name)
    return reached


def keeping(store: list[torch.Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that keeps a module's inputs."""

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        store.append(inputs[0].clone())

    return hook


@contextmanager
def strong_noise(net: nn.Module) -> Iterator[None]:
    """Training mode but for the BatchNorms, and a ratio of one half wherever a layer has one, so that it shows."""
    changed: list[tuple[nn.Module, str, float]] = []
    net.train()
    for part in net.modules():
        if isinstance(part, BATCH_NORM):
            part.eval()
        for name in ("p", "drop_prob", "drop_rate", "drop_path_rate"):
            value = getattr(part, name, None)
            if isinstance(value, float) and 0 < value < 1:
                changed.append((part, name, value))
                setattr(part, name, 0.5)
    try:
        yield
    finally:
        for part, name, value in changed:
            setattr(part, name, value)
        net.eval()


def verify(repair: Repair, net: nn.Module, images: torch.Tensor, row: Row) -> None:
    """The repaired, folded file against torch with the repaired statistics.

    Raises:
        CheckFailedError: they differ, or a name does not belong to the network.
    """
    state = net.state_dict()  # with its version numbers, without which some networks refuse to load
    unknown = sorted(set(repair.statistics) - set(state))
    if unknown:
        raise CheckFailedError(f"the statistics name what the network does not have: {', '.join(unknown[:3])}")
    for key, values in repair.statistics.items():
        state[key] = torch.from_numpy(np.array(values))
    net.load_state_dict(state)
    row["final_snr_db"] = difference(net, repair.model, images)
    if not row["final_snr_db"] >= MIN_SNR_DB:
        raise CheckFailedError(f"the repaired file differs from torch: SNR {row['final_snr_db']:.1f} dB")
