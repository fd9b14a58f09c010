"""Verdicts on 60 networks that were trained at random: is the right fault named, and lost noise found where it was?

    python benchmarks/verdicts.py train FOLDER                    # trains what is missing
    python benchmarks/verdicts.py judge FOLDER [--only PATTERN]   # runs `vsfix inspect` and `vsfix optimize` on each
    python benchmarks/verdicts.py table FOLDER                    # counts, and names each miss

The networks stand in `verdict_draws`, their truth in `verdict_training`. `judge` writes one line for each network to
FOLDER/judged.jsonl and goes on where it was stopped; `--again` judges anew. With `--lost` the files are those without
their noise, of all networks, and the lines go to FOLDER/judged-lost.jsonl. `table` ends with exit code 1 where a target
is missed, see `verdict_table`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from verdict_draws import draw_networks
from verdict_judge import answer_line, judge_network
from verdict_table import Outcome, print_table, read_outcomes
from verdict_training import train_network


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("train", "judge", "table"))
    parser.add_argument("folder", type=Path, help="where the networks and the results are kept")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="networks whose name matches, as '1?-*'")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; other networks, in a folder of their own")
    parser.add_argument("--lost", action="store_true", help="of each network the file that has lost its noise")
    parser.add_argument("--again", action="store_true", help="judge what was judged before too")
    options = parser.parse_args()
    if options.step == "train":
        return train(options)
    if options.step == "judge":
        judge(options)
    chosen = [outcome for outcome in _outcomes(options) if fnmatchcase(outcome.truth["name"], options.only)]
    met = print_table(chosen)
    return 0 if met or options.step == "judge" else 1


def _results(options: argparse.Namespace) -> Path:
    folder: Path = options.folder
    return folder / ("judged-lost.jsonl" if options.lost else "judged.jsonl")


def _outcomes(options: argparse.Namespace) -> list[Outcome]:
    return read_outcomes(options.folder, _results(options))


def train(options: argparse.Namespace) -> int:
    """Trains what is missing; goes on with the next network where one fails."""
    torch.set_num_threads(1)
    failed = 0
    for draw in draw_networks(options.seed):
        if not fnmatchcase(draw.name, options.only) or (options.folder / draw.name / "truth.json").exists():
            continue
        started = time.perf_counter()
        try:
            truth = train_network(draw, options.folder)
            told = f"{truth.deployed:.1f} of {truth.best:.1f}, statistics off by {truth.statistics_off:.2f}"
        except Exception as error:
            failed, told = failed + 1, f"failed: {str(error).splitlines()[0]}"
        print(f"{draw.name}: {draw.fault}, {draw.form}: {told}, {time.perf_counter() - started:.1f} s", flush=True)
    return 1 if failed else 0


def judge(options: argparse.Namespace) -> None:
    """Runs both commands on every trained network that has no verdict of both yet."""
    done = set() if options.again else {outcome.truth["name"] for outcome in _outcomes(options) if outcome.is_judged}
    for truth in sorted(options.folder.glob("*/truth.json")):
        name = truth.parent.name
        if name in done or not fnmatchcase(name, options.only):
            continue
        answer = judge_network(truth.parent, "lost.onnx" if options.lost else "model.onnx")
        with _results(options).open("a") as file:
            file.write(answer_line(answer) + "\n")
        said = answer.inspect.get("verdict", answer.inspect.get("error", ""))
        print(f"{name}: {answer.inspect['seconds']} + {answer.optimize['seconds']} s: {said[:100]}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
