"""Makes the kit that `run_all.py` takes to a host with a GPU: networks, their repaired forms, images.

    python benchmarks/ladder_train.py ladder                            # trains the networks, where that is not done
    python benchmarks/gpu/prepare.py ladder gpu-kit

For each network of the ladder with Dropout in it: the checkpoint, the statistics that a repair with 32 images found,
and four ONNX files, folded all of them: as trained and repaired, in float32 and in float16. The kit fits into 64 MiB,
and the host needs neither the data set nor what exports and repairs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from vsfix.graph_passes.folding.fold_batch_norm import FoldBatchNorm
from vsfix.graph_passes.io.model_file import export_model, import_graph, read_model, write_model
from vsfix.graph_passes.ir.graph_pass import PassPipeline
from vsfix.graph_passes.ir.remove_identities import RemoveIdentities
from vsfix.graph_passes.noise.marker import RemoveMarkers
from vsfix.pipeline.backends.onnxruntime_runner import open_for_small_runs
from vsfix.pipeline.casting.casting import cast_model
from vsfix.pipeline.data.calibration import calibration_batches, labelled_samples
from vsfix.pipeline.repair.repair import repair_model
from vsfix.pipeline.repair.repair_config import RepairConfig

DATA = "fashion-mnist"
NETWORKS = {
    "preresnet-20-a": "preresnet-20-dropout-0.5-a-0",
    "preresnet-20-b": "preresnet-20-dropout-0.5-b-0",
    "wrn-16-1": "wrn-16-1-dropout-0.5-b-0",
    "densenet-22-8": "densenet-22-8-dropout-0.5-b-0",
    "resnext-11-4x4d": "resnext-11-4x4d-dropout-0.5-a-0",
}
REPAIR_IMAGES = 32
TEST_IMAGES = 10000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ladder", type=Path, help="the folder of benchmarks/ladder.py")
    parser.add_argument("kit", type=Path, help="a folder that is made")
    options = parser.parse_args(arguments)
    options.kit.mkdir(parents=True, exist_ok=True)
    for name, stem in NETWORKS.items():
        prepare_network(options.ladder / f"{stem}.onnx", options.ladder / stem / "checkpoint.pt", options.kit / name)
        print(f"{name}: prepared", file=sys.stderr)
    model = read_model(options.kit / next(iter(NETWORKS)) / "original.onnx")
    test = labelled_samples(model, DATA, split="test", seed=0).subset(TEST_IMAGES, seed=0)
    assert test.labels is not None
    np.savez_compressed(options.kit / "images.npz", labels=test.labels, **test.inputs)
    size = sum(path.stat().st_size for path in options.kit.rglob("*") if path.is_file())
    print(f"{options.kit}: {size / 2**20:.1f} MiB")
    return 0


def prepare_network(exported: Path, checkpoint: Path, folder: Path) -> None:
    """One network in all its forms."""
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint.pt").write_bytes(checkpoint.read_bytes())
    model = read_model(exported)
    batches = list(calibration_batches(model, DATA, samples=REPAIR_IMAGES, batch_size=REPAIR_IMAGES, seed=0))
    repair = repair_model(model, batches, open_for_small_runs, RepairConfig(method="match"))
    np.savez(folder / "statistics.npz", **{str(name): array for name, array in repair.statistics.items()})
    for form, deployed in (("original", fold(model)), ("repaired", repair.model)):
        write_model(deployed, folder / f"{form}.onnx", force=True)
        half = cast_model(deployed, "fp16", batches[0], open_for_small_runs).model
        write_model(half, folder / f"{form}-fp16.onnx", force=True)


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network as it is deployed without a repair."""
    graph = import_graph(model)
    PassPipeline([RemoveMarkers(), RemoveIdentities(), FoldBatchNorm()])(graph)
    return export_model(graph, model)


if __name__ == "__main__":
    sys.exit(main())
