"""Short pieces in eleven styles, each with the tags that a listener would give it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from real_entry import Array, Place
from real_sound import CLAP, CLOSED, DRUMS, FONT_FILES, KICK, RIDE, SNARE, Note, mel_spectrogram, play

RATE, SIZE, HOP, BANDS, FRAMES = 16_000, 512, 256, 96, 187  # musicnn/configuration.py
SECONDS, SPACING = 3.1, 5.5


class Style(NamedTuple):
    """Tags of both sets of labels, the instruments of General MIDI, how it is played, and beats a minute."""

    tags: Sequence[str]
    programs: Sequence[int]
    manner: str
    tempi: tuple[int, int]


STYLES = (
    Style(("piano",), (0, 1), "melody", (70, 120)),
    Style(("harpsichord",), (6,), "melody", (90, 140)),
    Style(("guitar", "acoustic"), (24, 25), "arpeggio", (70, 120)),
    Style(("violin", "strings"), (40,), "slow melody", (60, 100)),
    Style(("cello",), (42,), "slow melody", (50, 80)),
    Style(("flute",), (73,), "slow melody", (60, 110)),
    Style(("harp",), (46,), "arpeggio", (70, 120)),
    Style(("sitar", "indian"), (104,), "melody", (80, 120)),
    Style(("choir", "choral"), (52,), "chords", (50, 70)),
    Style(("rock", "metal", "hard rock", "heavy metal"), (30,), "rock", (110, 160)),
    Style(("techno", "dance", "electronic", "electronica", "House", "electro"), (81, 87, 62), "techno", (120, 140)),
    Style(("ambient", "new age", "chillout"), (88, 89, 94), "chords", (40, 60)),
    Style(("jazz",), (66, 0, 26), "jazz", (110, 180)),
)
MAJOR = (0, 2, 4, 5, 7, 9, 11, 12)


def clips(place: Place, count: int, seed: int) -> dict[str, Array]:
    """Log mel spectra (N, 187, 96) of that many clips, and the number of the style of each."""
    return place.kept(f"styles-{count}-{seed}", lambda: _clips(place.count(count), seed))


def _clips(count: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    styles = rng.integers(len(STYLES), size=count)
    spectra = []
    for font, part in zip(FONT_FILES, np.array_split(styles, len(FONT_FILES)), strict=True):
        notes = [note for number, style in enumerate(part) for note in _piece(number * SPACING, STYLES[style], rng)]
        sound = play(notes, len(part) * SPACING, RATE, font)
        for number in range(len(part)):
            start = round((number * SPACING + 0.2) * RATE)
            mel = mel_spectrogram(sound[start : start + round(SECONDS * RATE)], RATE, SIZE, HOP, BANDS)
            # musicnn/extractor.py batch_data: float16, then the logarithm
            spectra.append(np.log10(10_000 * mel.T[:FRAMES].astype(np.float16).astype(np.float32) + 1))
    return {"mel": np.stack(spectra).astype(np.float32), "style": styles}


def _piece(start: float, style: Style, rng: np.random.Generator) -> list[Note]:
    """Four seconds of one style."""
    beat = 60 / rng.uniform(*style.tempi)
    program, key, end = int(rng.choice(style.programs)), int(rng.integers(48, 60)), SECONDS + 0.9
    notes: list[Note] = []

    def add(
        when: float, length: float, pitch: int, velocity: int = 90, channel: int = 0, instrument: int = program
    ) -> None:
        if when < end:
            notes.append(Note(start + when, min(length, end - when), pitch, velocity, channel, instrument))

    scale = [key + step for step in MAJOR]
    if "melody" in style.manner:
        step = beat * (1 if "slow" in style.manner else 0.5)
        for number in range(int(end / step)):
            add(
                number * step,
                0.95 * step,
                int(rng.choice(scale)) + 12 * int(rng.integers(0, 2)),
                int(rng.integers(70, 110)),
            )
    elif style.manner == "arpeggio":
        for number in range(int(2 * end / beat)):
            add(number * beat / 2, 1.5 * beat, key + int(rng.choice([0, 4, 7, 12, 16])), int(rng.integers(60, 100)))
    elif style.manner == "chords":
        for number in range(int(end / (2 * beat)) + 1):
            root = key + int(rng.choice([0, 5, 7]))
            for interval in (0, 4, 7, 12):
                add(number * 2 * beat, 2 * beat, root + interval, 80)
    else:
        _band(style.manner, beat, end, key, program, add, rng)
    return notes


def _band(manner: str, beat: float, end: float, key: int, program: int, add, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    """Drums, bass and a lead."""
    for number in range(int(end / beat) + 1):
        when, place = number * beat, number % 4
        if manner == "rock":
            root = key - 12 + int([0, 0, 3, 5][(number // 2) % 4])
            for half in (0, 0.5):
                for interval in (0, 7, 12):
                    add(when + half * beat, 0.45 * beat, root + interval, 110)
                add(when + half * beat, 0.1, CLOSED, 90, DRUMS)
                add(when + half * beat, 0.4 * beat, root - 12, 100, 1, 34)
            add(when, 0.1, KICK if place % 2 == 0 else SNARE, 120, DRUMS)
        elif manner == "techno":
            add(when, 0.1, KICK, 120, DRUMS)
            add(when + beat / 2, 0.1, CLOSED, 100, DRUMS)
            if place % 2:
                add(when, 0.1, CLAP, 100, DRUMS)
            for quarter in range(4):
                add(when + quarter * beat / 4, 0.2 * beat, key - 12 + int(rng.choice([0, 0, 3, 7])), 90, 1, 38)
            add(when + beat / 2, 0.3 * beat, key + 12 + int(rng.choice([0, 3, 7])), 90)
        else:
            add(when, 0.1, RIDE, 90, DRUMS)
            if place % 2:
                add(when + 2 * beat / 3, 0.1, RIDE, 70, DRUMS)
            add(when, 0.9 * beat, key - 12 + int(rng.choice(MAJOR)), 90, 1, 32)
            for third in (0, 2 / 3):
                if rng.random() < 0.8:
                    add(when + third * beat, 0.4 * beat, key + int(rng.choice((0, 2, 3, 5, 7, 9, 10, 12))), 90)
