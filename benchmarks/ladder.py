"""The ladder: 37 small networks, every way to repair them, no data to all of it, against the noise-averaged network.

    python benchmarks/ladder_train.py ladder            # trains what is missing, half an hour on one core
    python benchmarks/ladder.py ladder                  # measures what is missing, prints the table and the targets
    python benchmarks/ladder.py ladder --only preresnet --skip "no data"
    python benchmarks/ladder.py ladder --table          # prints what was measured

The networks stand in `ladder_networks`, their data in `ladder_tasks`. Metrics are on 2,000 test rows: top-1 in per cent
(NLL in brackets), R2 (squared error), IoU in per cent (binary cross-entropy). The oracle is `exact` over all rows that
the network was trained on. Rows for a repair are training rows without targets, chosen under two seeds. Every
measurement is a line of ladder/results.jsonl and is not taken again; delete lines to take them anew. Repairs that the
installed vsfix doesn't know are left out. Exit code 1 where a target is missed:

    auto 256           where R is above the bound: inside the 95 % interval of the noise average or better; no
                       classifier below the oracle, and at least 1 point above it where the noise average is 2 above
    every repair       not below as trained beyond the 95 % interval, nor by more than 0.2 points or 0.003 R2 with 256
                       rows, 0.3 or 0.01 with 32, 0.3 or 0.005 without data (no interval there); where R is not above
                       the bound, `auto` is judged in the place of `match`
    no data            at least 95 % of the gain of 256 rows
    healthy networks   `auto` leaves every parameter bit for bit
    R                  rank correlation of at least 0.8 with what the network lost
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from ladder_measure import NAMES, Measurement, measure, missing, read_measurements
from ladder_networks import NETWORKS, Rung
from ladder_table import table
from ladder_targets import Results, misses


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the networks and the results are kept")
    parser.add_argument("--only", help="networks whose file name contains this")
    parser.add_argument("--skip", nargs="*", default=[], metavar="METHOD", help=f"columns to leave out: {NAMES}")
    parser.add_argument("--table", action="store_true", help="measure nothing, print")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    rungs = [rung for rung in NETWORKS if not options.only or options.only in rung.stem]
    done = read_measurements(options.folder)
    for rung in [] if options.table else rungs:
        done += climb(rung, done, options)
    results = Results(options.folder, done)
    print(table(rungs, results))
    missed = misses(rungs, results)
    print("\n".join(["", *(f"MISS {miss}" for miss in missed)] if missed else ["", "every target is met"]))
    return 1 if missed else 0


def climb(rung: Rung, done: Sequence[Measurement], options: argparse.Namespace) -> list[Measurement]:
    """Takes what is missing of one network; whether `auto` is among it is known when R is."""
    found: list[Measurement] = []
    if not list(missing(rung, done, options.seeds, options.skip)):
        return found
    model = rung.exported(options.folder)
    task = rung.data(model)
    while wanted := list(missing(rung, [*done, *found], options.seeds, options.skip)):
        name, seed = wanted[0]
        for measurement in measure(rung, model, task, name, seed, options.folder):
            found.append(measurement)
            told = measurement.error or ", ".join(f"{key} {value:.4g}" for key, value in measurement.metrics.items())
            print(f"{rung.stem}: {measurement.column}, seed {measurement.seed}: {told}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
