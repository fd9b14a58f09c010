"""The outputs of PyTorch, which every engine is held against: eager, float32 in full, TF32 off.

    python benchmarks/gpu/reference.py KIT RESULTS [--device cuda] [--images 200]

`run_all.py` calls this in a process of its own, since a Python with TensorRT may have no torch. Of vsfix it takes the
networks and the checkpoints alone. Writes RESULTS/NETWORK/torch.npz with `original` and `repaired`, the class scores
(N, classes), and `torch`, its version and device; the repaired parameters are loaded into the module, as a user of
PyTorch would.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vsfix.trainers.training.checkpoint import load_checkpoint

BATCH = 500


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, help="the first so many alone")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU here", file=sys.stderr)
        return 3
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    with np.load(options.kit / "images.npz") as arrays:
        images = arrays["input"][: options.images]
    for folder in sorted(path.parent for path in options.kit.glob("*/checkpoint.pt")):
        module = load_checkpoint(folder / "checkpoint.pt").build().eval().to(options.device)
        outputs = {"original": run(module, images, options.device)}
        with np.load(folder / "parameters.npz") as parameters:
            state = module.state_dict()
            unknown = set(parameters.files) - set(state)
            if unknown:
                raise KeyError(f"{folder}: the checkpoint has no {sorted(unknown)}")
            state.update({name: torch.from_numpy(values) for name, values in parameters.items()})
            module.load_state_dict(state)
        outputs["repaired"] = run(module, images, options.device)
        outputs["torch"] = np.array(f"{torch.__version__} on {_device_name(options.device)}")
        target = options.results / folder.name / "torch.npz"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial.npz")
        np.savez(partial, **outputs)
        partial.rename(target)
    return 0


def run(module: torch.nn.Module, images: np.ndarray, device: str) -> np.ndarray:
    """The outputs over all images, shape (N, classes)."""
    with torch.inference_mode():
        parts = [
            module(torch.from_numpy(images[start : start + BATCH]).to(device)).cpu().numpy()
            for start in range(0, len(images), BATCH)
        ]
    return np.concatenate(parts)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "the CPU"


if __name__ == "__main__":
    sys.exit(main())
