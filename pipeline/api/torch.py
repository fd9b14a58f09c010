"""Modules of torch, repaired without a graph: `vsfix.torch`.

import vsfix.torch

report = vsfix.torch.repair_(module, loader)      in place, and restored on any error
with vsfix.torch.noise_averaged(module):          module(x) is the average over its noise inside the block
    ...
"""

from __future__ import annotations

from vsfix.trainers.averaging.module_repair import repair_
from vsfix.trainers.averaging.noisy_forward import noise_averaged
from vsfix.trainers.averaging.repair_report import RepairReport

__all__ = ["RepairReport", "noise_averaged", "repair_"]
