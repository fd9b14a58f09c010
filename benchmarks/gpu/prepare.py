"""Makes the kit that `run_all.py` takes to a host with a GPU: networks, their repaired forms, images.

    python benchmarks/ladder_train.py ladder                            # trains the networks, where that is not done
    python benchmarks/gpu/prepare.py ladder gpu-kit                     # a few minutes on one core

For each network of the ladder with Dropout in it: the checkpoint, the parameters that the repair found (match and its
refinement, 256 unlabelled images), and four ONNX files, folded all of them: as trained and repaired, in float32 and in
float16. `kit.json` says what the repair said. The kit fits into 64 MiB, and the host needs neither the data set nor
what exports and repairs. Exit code 1 where it does not fit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx

import vsfix
from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model, write_model
from vsfix.graph_passes.ir.graph_pass import PassPipeline
from vsfix.graph_passes.ir.remove_identities import RemoveIdentities
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.pipeline.data.calibration import labelled_samples

DATA = "fashion-mnist"
NETWORKS = {
    "preresnet-20-a": "preresnet-20-dropout-0.5-a-0",
    "preresnet-20-b": "preresnet-20-dropout-0.5-b-0",
    "wrn-16-1": "wrn-16-1-dropout-0.5-b-0",
    "densenet-22-8": "densenet-22-8-dropout-0.5-b-0",
    "resnext-11-4x4d": "resnext-11-4x4d-dropout-0.5-a-0",
}
REPAIR_IMAGES = 256
TEST_IMAGES = 10000
MOST_BYTES = 64 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ladder", type=Path, help="the folder of benchmarks/ladder.py")
    parser.add_argument("kit", type=Path, help="a folder that is made")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=TEST_IMAGES, help="of the test set")
    parser.add_argument("--samples", type=int, default=REPAIR_IMAGES, help="unlabelled images for each repair")
    options = parser.parse_args(arguments)
    options.kit.mkdir(parents=True, exist_ok=True)
    said = {}
    for name in options.only:
        stem = NETWORKS[name]
        checkpoint = options.ladder / stem / "checkpoint.pt"
        said[name] = prepare(options.ladder / f"{stem}.onnx", checkpoint, options.kit / name, options.samples)
        print(f"{name}: {said[name]['verdict']}", file=sys.stderr, flush=True)
    model = read_model(options.kit / options.only[0] / "original.onnx")
    test = labelled_samples(model, DATA, split="test", seed=0).subset(options.images, seed=0)
    assert test.labels is not None
    np.savez_compressed(options.kit / "images.npz", labels=test.labels, **test.inputs)
    (options.kit / "kit.json").write_text(json.dumps(said, indent=1) + "\n")
    size = sum(path.stat().st_size for path in options.kit.rglob("*") if path.is_file())
    print(f"{options.kit}: {size / 2**20:.1f} MiB")
    return 1 if size > MOST_BYTES else 0


def prepare(exported: Path, checkpoint: Path, folder: Path, samples: int) -> dict[str, object]:
    """One network in all its forms, and what the repair said."""
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint.pt").write_bytes(checkpoint.read_bytes())
    repair = vsfix.optimize(exported, DATA, method="match", refine=True, samples=samples)
    np.savez(folder / "parameters.npz", **repair.state_dict())
    for form, deployed in (("original", fold(read_model(exported))), ("repaired", repair.model)):
        write_model(deployed, folder / f"{form}.onnx", force=True)
        half = vsfix.optimize(deployed, DATA, method="none", precision="fp16", samples=samples)
        half.save(folder / f"{form}-fp16.onnx", force=True)
    return {"status": repair.status, "verdict": repair.verdict, "method": repair.report.method}


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network as it is deployed without a repair."""
    graph = import_graph(model)
    PassPipeline([RemoveMarkers(), RemoveIdentities(), FoldBatchNorm()])(graph)
    return export_model(graph, model)


if __name__ == "__main__":
    sys.exit(main())
