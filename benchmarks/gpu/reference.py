"""The outputs of PyTorch, which every engine is held against: eager, float32 in full, TF32 off.

    python benchmarks/gpu/reference.py KIT RESULTS [--device cuda]

`run_all.py` calls this in a process of its own, since a Python with TensorRT may have no torch. Of vsfix it takes the
networks and the checkpoints alone. Writes RESULTS/NETWORK/FORM.npz with `logits` (N, classes), form `original` or
`repaired`; the repaired statistics are loaded into the module, as a user of PyTorch would.
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
    options = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    with np.load(options.kit / "images.npz") as arrays:
        images = arrays["input"]
    for folder in sorted(path.parent for path in options.kit.glob("*/checkpoint.pt")):
        module = load_checkpoint(folder / "checkpoint.pt").build().eval()
        for form in ("original", "repaired"):
            if form == "repaired":
                with np.load(folder / "statistics.npz") as statistics:
                    state = module.state_dict()
                    state.update({name: torch.from_numpy(values) for name, values in statistics.items()})
                    module.load_state_dict(state)
            target = options.results / folder.name / f"{form}.npz"
            target.parent.mkdir(parents=True, exist_ok=True)
            np.savez(target, logits=run(module.to(options.device), images, options.device))
            module.to("cpu")
    print(f"torch {torch.__version__} on {_device_name(options.device)}")
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
