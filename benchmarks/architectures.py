"""Takes every architecture of timm and torchvision that has BatchNorm from torch to a repaired, folded ONNX file.

    pip install timm torchvision      # builds that fit the installed torch; vsfix itself needs neither
    python benchmarks/architectures.py --limit 200 --out architectures.jsonl

Each network is made without pretrained weights and with its drop rates set (timm: drop_rate 0.2, drop_path_rate 0.1,
proj_drop_rate 0.2, where it takes them; torchvision: its defaults), gets real BatchNorm statistics from two forwards
in training mode, and goes through export, inspect, repair and fold on 16 images. It passes when

- the file shows all of the noise, and the noise reaches those BatchNorms whose inputs torch changes from run to run
  when nothing but the noise is on,
- `export_onnx` takes the file for what torch computes: SNR of 100 dB, or as near to float64 as torch itself,
- the repaired, folded file computes what torch computes with the repaired statistics: SNR of at least 60 dB,
- the full ONNX checker takes the result.

A failure is charged to torch.export or torch.onnx where they fail on the network alone, without vsfix, in the same way.
Each network has a process of its own with limits on time and memory. The results are JSON lines; names that stand there
are not run again, and the table is printed from them. Exits 1 when a failure is charged to vsfix.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnx.checker
import timm
import timm.models
import torch
import torchvision
from torch import nn

from vsfix.graph_passes.errors import CheckFailedError, InputError, VsfixError
from vsfix.graph_passes.model_file import import_graph, read_model, write_model
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.inspection import inspect_graph
from vsfix.pipeline.repair import repair_model
from vsfix.pipeline.repair_config import RepairConfig
from vsfix.pipeline.repair_report import Repair
from vsfix.pipeline.tensor_comparison import compare_tensors
from vsfix.trainers.onnx_export import ExportResult, export_onnx

DROP_RATES = {"drop_rate": 0.2, "drop_path_rate": 0.1, "proj_drop_rate": 0.2}
SAMPLES = 16
SIDES = (64, 96, 128, 192, 224, 256, 288, 320, 384, 448)  # of the image, the first that the network takes
FRAMES = 8
MIN_SNR_DB = 60.0
BATCH_NORM = nn.modules.batchnorm._BatchNorm
Row = dict[str, Any]


class SkipError(Exception):
    """The network lies outside what is asked here."""


class FirstOutput(nn.Module):
    """A network that returns one tensor, where `net` returns several by name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output called `out`."""
        out: torch.Tensor = self.net(x)["out"]
        return out


# What there is


def catalogue() -> Iterator[tuple[str, str]]:
    """The name and the family of each architecture."""
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            yield f"timm/{name}", f"timm/{module}"
    for name in torchvision.models.list_models():
        family = torchvision.models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
        yield f"torchvision/{name}", f"torchvision/{family}"


def build(name: str) -> nn.Module:
    """The network, with its drop rates."""
    library, _, short = name.partition("/")
    if library == "torchvision":
        # Backbones have pretrained weights by default; the others take no such argument and leave it unused.
        backbone = any(part in short for part in ("rcnn", "retinanet", "ssd", "fcos", "deeplab", "fcn", "lraspp"))
        arguments = {"weights_backbone": None} if backbone else {}
        net = torchvision.models.get_model(short, weights=None, **arguments)
        return FirstOutput(net) if short.startswith(("deeplab", "fcn_", "lraspp")) else net
    rates = dict(DROP_RATES)
    while True:
        try:
            return timm.create_model(short, pretrained=False, **rates)
        except TypeError as error:
            refused = [key for key in rates if f"'{key}'" in str(error)]
            if "unexpected keyword" not in str(error) or not refused:
                raise
            rates = {key: value for key, value in rates.items() if key not in refused}


def describe(name: str, family: str) -> Row:
    """What can be told without memory for the weights."""
    row: Row = {"name": name, "family": family, "parameters": None, "batch_norms": None}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = build(name)
    except Exception as error:  # some can't be made without memory; they are made with it later
        return row | {"note": first_line(error)}
    row["parameters"] = sum(parameter.numel() for parameter in net.parameters())
    row["batch_norms"] = sum(isinstance(part, BATCH_NORM) for part in net.modules())
    row["fixed_size"] = bool((getattr(net, "pretrained_cfg", None) or {}).get("fixed_input_size"))
    return row


def described(path: Path) -> list[Row]:
    """One row for each architecture, made once and kept beside the results."""
    if path.exists():
        return [json.loads(line) for line in path.read_text().splitlines()]
    rows = [describe(name, family) for name, family in catalogue()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The smallest of each family, then all others, roughly those first that take the least time."""
    small = sorted(rows, key=lambda row: (row["parameters"] or math.inf, row["name"]))
    first: dict[str, str] = {}
    for row in small:
        if row["batch_norms"] != 0:
            first.setdefault(row["family"], row["name"])
    return sorted(
        small,
        key=lambda row: (
            first.get(row["family"]) != row["name"],
            row.get("fixed_size", False),  # of 224 pixels or more
            row["batch_norms"] or 0,
        ),
    )


# One network


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
    return "vsfix" if snr >= MIN_SNR_DB else f"torch.onnx, the file departs from torch (SNR {snr:.0f} dB)"


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
        raise CheckFailedError(f"the repaired file departs from torch: SNR {row['final_snr_db']:.1f} dB")


# Many networks


def guarded(name: str, options: argparse.Namespace) -> Row:
    """Walks one network in a process of its own."""
    context = multiprocessing.get_context("fork")  # the libraries are loaded once
    results, sender = context.Pipe(duplex=False)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        child = context.Process(target=_child, args=(name, options, Path(folder), sender))
        child.start()
        sender.close()
        try:
            row: Row = results.recv() if results.poll(options.seconds) else {"reason": f"more than {options.seconds} s"}
        except EOFError:
            child.join(10)
            row = {"reason": f"its process ended (exit code {child.exitcode})"}
        child.kill()
        child.join()
    return {"status": "FAIL", "whose": "limit", "seconds": round(time.perf_counter() - started, 1)} | row


def _child(name: str, options: argparse.Namespace, folder: Path, sender: Any) -> None:
    """Runs in the new process: silent, with its limit on memory."""
    resource.setrlimit(resource.RLIMIT_DATA, (options.memory * 2**30, resource.RLIM_INFINITY))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sender.send(walk(name, options.max_parameters, folder))


def first_line(error: object) -> str:
    """An error in one line."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"\s+", " ", text)[:400]


def run_all(rows: Sequence[Row], options: argparse.Namespace) -> list[Row]:
    """The rows of the results, old and new."""
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if options.retry:
        done = [row for row in done if row["status"] != "FAIL"]
        options.out.write_text("".join(json.dumps(row) + "\n" for row in done))
    names = {row["name"] for row in done}
    passed = sum(row["status"] == "PASS" for row in done)
    with options.out.open("a") as out:
        for entry in in_order(rows):
            if passed >= options.limit:
                break
            if entry["name"] in names:
                continue
            if entry["batch_norms"] == 0:
                result: Row = {"status": "SKIP", "reason": "no BatchNorm"}
            elif (entry["parameters"] or 0) > options.max_parameters:
                result = {"status": "SKIP", "reason": f"more than {options.max_parameters / 1e6:g} M parameters"}
            else:
                result = guarded(entry["name"], options)
                print(f"{entry['name']:45} {result['status']} {result['seconds']:6} s  {result['reason']}", flush=True)
            row = {key: entry[key] for key in ("name", "family", "parameters")} | result
            passed += row["status"] == "PASS"
            done.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
    return done


def table(rows: Sequence[Row]) -> str:
    """All results in Markdown: the counts, the networks that ran, and what did not run."""
    counts = Counter(row["status"] for row in rows)
    passed = [row for row in rows if row["status"] == "PASS"]
    lines = [
        f"PASS {counts['PASS']} networks of {len({row['family'] for row in passed})} families, "
        f"FAIL {counts['FAIL']}, SKIP {counts['SKIP']}; torch {torch.__version__}, timm {timm.__version__}, "
        f"torchvision {torchvision.__version__}, onnx {onnx.__version__}",
        "",
        "| network | family | M parameters | input | nodes | BatchNorms | noise | reached | repaired | folded "
        "| export | repaired and folded | seconds | status |",
        "| --- | --- | ---: | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [_line(row) for row in sorted(rows, key=lambda row: row["name"]) if row["status"] != "SKIP"]
    lines += ["", "| skipped because | networks | for example |", "| --- | ---: | --- |"]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "SKIP":
            reasons.setdefault(row["reason"], []).append(row["name"])
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {reason} | {len(names)} | {', '.join(sorted(names)[:3])} |")
    return "\n".join(lines)


def _line(row: Row) -> str:
    """One network."""

    def decibel(value: float | None) -> str:
        return "" if value is None else "equal" if math.isinf(value) else f"{value:.0f} dB"

    noise = ", ".join(f"{count} {kind}" for kind, count in row.get("noise", {}).items())
    status = row["status"] if row["status"] == "PASS" else f"FAIL ({row['whose']}): {row['reason']}"
    cells = [row["name"], row["family"].partition("/")[2], f"{(row['parameters'] or 0) / 1e6:.1f}"]
    cells += [str(row.get(key, "")) for key in ("input", "nodes", "batch_norms")]
    cells += [noise, *(str(row.get(key, "")) for key in ("reached", "repaired", "folded"))]
    cells += [decibel(row.get("export_snr_db")), decibel(row.get("final_snr_db")), f"{row['seconds']:.0f}", status]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description="Architectures of timm and torchvision through vsfix.")
    parser.add_argument("names", nargs="*", help="only these, as timm/resnet18")
    parser.add_argument("--out", type=Path, default=Path("architectures.jsonl"), help="results, one JSON line each")
    parser.add_argument("--families", default="", help="only these, by comma, as timm/resnet,torchvision/densenet")
    parser.add_argument("--limit", type=int, default=10**9, help="stop when so many have passed")
    parser.add_argument("--max-parameters", type=float, default=30e6, help="larger networks are skipped")
    parser.add_argument("--seconds", type=int, default=180, help="for one network")
    parser.add_argument("--memory", type=int, default=8, help="GiB for one network")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = described(options.out.with_suffix(".catalogue"))
    families = {family for family in options.families.split(",") if family}
    rows = [row for row in rows if not families or row["family"] in families]
    rows = [row for row in rows if not options.names or row["name"] in options.names]
    done = run_all(rows, options)
    print(table(done))
    return 1 if any(row.get("whose") == "vsfix" for row in done) else 0


if __name__ == "__main__":
    sys.exit(main())
