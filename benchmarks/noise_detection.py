"""How well the noise that reaches a BatchNorm is found, on random networks whose truth torch tells.

    python benchmarks/noise_detection.py --graphs 500 --seed 0

Each network is exported, read back and analysed; the truth is which BatchNorm inputs change from run to run when only
the noise is on. One line for each disagreement, then the counts, precision and recall. The exit code is 1 where there
is any disagreement.

The analysis follows tensors, not their channels: a BatchNorm behind a slice that takes the channels without noise out
of a concatenation with noisy ones counts as reached, though it is not.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the networks stand with the tests

from tests.trainers.export.detected_noise import FORMS, Detection, detect
from vsfix.graph_passes.errors import VsfixError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=500, help="how many networks (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first network (default: %(default)s)")
    parser.add_argument("--form", choices=sorted(FORMS), default="marked", help="of the export (default: %(default)s)")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    start = time.monotonic()
    detections, failures = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seed, options.seed + options.graphs):
            try:
                detections.append(detect(seed, Path(folder), options.form))
            except VsfixError as error:
                failures.append(seed)
                print(f"network {seed}: {error}", flush=True)
                continue
            report_disagreement(detections[-1])
    seconds = time.monotonic() - start
    wrong = report_counts(detections)
    print(f"{len(detections)} networks in {seconds:.0f} s; {len(failures)} could not be analysed")
    return 1 if wrong or failures else 0


def report_disagreement(found: Detection) -> None:
    missed, invented = sorted(found.truth - found.found), sorted(found.found - found.truth)
    lost = sorted(found.batch_norms - found.kept)
    if missed or invented or lost:
        print(f"network {found.seed}: missed {missed}, invented {invented}, lost {lost}, {found.unmarked}", flush=True)


def report_counts(detections: list[Detection]) -> int:
    reached = sum(len(found.truth) for found in detections)
    batch_norms = sum(len(found.batch_norms) for found in detections)
    hits = sum(len(found.truth & found.found) for found in detections)
    invented = sum(len(found.found - found.truth) for found in detections)
    print(f"BatchNorms {batch_norms}: noise reaches {reached}, not {batch_norms - reached}")
    print(f"found {hits}, missed {reached - hits}, invented {invented}")
    precision = hits / (hits + invented) if hits + invented else float("nan")
    print(f"precision {precision:.4f}, recall {hits / reached if reached else float('nan'):.4f}")
    return reached - hits + invented


if __name__ == "__main__":
    sys.exit(main())
