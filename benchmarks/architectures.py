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
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import onnx
import timm
import torch
import torchvision
from architecture_catalogue import Row, described, in_order
from architecture_walk import walk


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
