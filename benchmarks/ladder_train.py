"""Trains and exports every network of the ladder that is missing: python benchmarks/ladder_train.py FOLDER."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

import torch
from ladder_networks import NETWORKS


def main() -> int:
    """Goes on with the next network where one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder, failed = parser.parse_args().folder, 0
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for rung in NETWORKS:
        started = time.perf_counter()
        try:
            rung.exported(folder)
        except Exception:
            traceback.print_exc()
            failed += 1
        print(f"{time.strftime('%H:%M:%S')} {rung.stem} {time.perf_counter() - started:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
