"""Three of the tempo estimators of tempocnn, on rhythms of drums, bass and chords whose tempo is known."""

from __future__ import annotations

from functools import partial

import numpy as np
from ladder_scores import file_outputs
from real_entry import Array, Case, Metric, Network, Outputs, Place, only
from real_export import both_files, input_name
from real_keras import KerasNetwork, original_answers
from real_sound import CLAP, CLOSED, DRUMS, FONT_FILES, KICK, OPEN, RIDE, SNARE, Note, mel_spectrogram, play

from vsfix.graph_passes.ir.rounding import snr_db

RATE, SIZE, HOP, BANDS, FRAMES = 11_025, 1024, 512, 40, 256
SECONDS = 12.5
FIRST_TEMPO = 30  # of the 256 classes, one for each beat a minute


def tempo(name: str, place: Place) -> Case:
    """One model of the wheel, on one window of each track."""
    path = place.wheel("tempocnn", "0.0.8") / "tempocnn" / "models" / f"{name}.h5"
    network = KerasNetwork(path).eval()
    calibration, held = tracks(place, 256, 1), tracks(place, 600, 2)
    # tempocnn/classifier.py: the older models divide by the largest value, the others standardise.
    normalise = _by_largest if name in ("cnn", "fcn", "ismir2018") else _standardised
    rows, test = normalise(calibration["mel"]), normalise(held["mel"])
    model, lost = both_files(network, rows[:4])
    given = input_name(model)
    parity = None
    if place.tensorflow is not None:
        original = original_answers(place.tensorflow, "keras", path, test[:64].transpose(0, 2, 3, 1))
        parity = snr_db(original, only(file_outputs(model, {given: test[:64]})))
    return Case(
        model,
        {given: rows},
        {given: test},
        partial(_score, truth=held["tempo"]),
        (Metric("within 4 %, %"), Metric("within 4 % or a factor of 2 or 3, %"), Metric("log probability", digits=3)),
        lost=lost,
        parity_db=parity,
        parity_with="" if parity is None else "TensorFlow 2.15",
    )


def _by_largest(mel: Array) -> Array:
    return np.asarray(mel / mel.max((1, 2, 3), keepdims=True), dtype=np.float32)


def _standardised(mel: Array) -> Array:
    wide = mel.astype(np.float64)
    return np.asarray(
        (wide - wide.mean((1, 2, 3), keepdims=True)) / wide.std((1, 2, 3), keepdims=True), dtype=np.float32
    )


def _score(answers: Outputs, truth: Array) -> tuple[Array, ...]:
    """Accuracy 1 and 2 of tempo estimation, and the logarithm of the probability within 4 %."""
    probability = only(answers).astype(np.float64)
    tempi = FIRST_TEMPO + np.arange(probability.shape[1])
    found = tempi[probability.argmax(1)]
    factors = np.array([1, 2, 3, 1 / 2, 1 / 3])
    near = np.abs(found[:, None] / (truth[:, None] * factors) - 1) <= 0.04
    inside = np.abs(tempi / truth[:, None] - 1) <= 0.04
    return 100.0 * near[:, 0], 100.0 * near.any(1), np.log(np.maximum((probability * inside).sum(1), 1e-6))


def tracks(place: Place, count: int, seed: int) -> dict[str, Array]:
    """Mel spectra (N, 1, 40, 256) of that many tracks, and their tempi in beats a minute."""
    return place.kept(f"rhythms-{count}-{seed}", lambda: _tracks(place.count(count), seed))


def _tracks(count: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    tempi = rng.uniform(60, 180, count)
    spectra = []
    for font, part in zip(FONT_FILES, np.array_split(tempi, len(FONT_FILES)), strict=True):
        notes = [note for number, each in enumerate(part) for note in _track(number * (SECONDS + 0.5), each, rng)]
        sound = play(notes, len(part) * (SECONDS + 0.5), RATE, font)
        for number in range(len(part)):
            start = round(number * (SECONDS + 0.5) * RATE)
            one = sound[start : start + round(SECONDS * RATE)]
            # tempocnn/feature.py read_features
            spectra.append(mel_spectrogram(one, RATE, SIZE, HOP, BANDS, 20, 5000, power=1)[:, :FRAMES])
    return {"mel": np.stack(spectra)[:, None].astype(np.float32), "tempo": tempi}


def _track(start: float, tempo: float, rng: np.random.Generator) -> list[Note]:
    """Four beats a bar: kick and snare, a cymbal that subdivides, bass on some beats, a chord in each bar."""
    beat, notes = 60 / tempo, []
    style = rng.integers(4)
    chords, bass, key = (
        int(rng.choice([0, 4, 16, 25, 48, 62, 81])),
        int(rng.choice([32, 33, 38])),
        int(rng.integers(36, 48)),
    )
    swing = 2 / 3 if style == 3 else 1 / 2
    cymbal = int(rng.choice([CLOSED, CLOSED, RIDE, OPEN]))
    drums, harmony, offset = rng.random() < 0.9, rng.random() < 0.8, rng.uniform(0, beat)
    if not drums:
        harmony = True

    def add(when: float, length: float, pitch: int, velocity: float, channel: int, program: int = 0) -> None:
        moved = offset + when + float(rng.normal(0, 0.004))
        if moved >= 0 and moved + length < SECONDS:
            loud = int(np.clip(velocity + rng.normal(0, 6), 20, 127))
            notes.append(Note(start + moved, length, pitch, loud, channel, program))

    for number in range(int(SECONDS / beat)):
        when, place = number * beat, number % 4
        if drums:
            if style == 1 or place in (0, 2):
                add(when, 0.1, KICK, 110, DRUMS)
            if place in (1, 3):
                add(when, 0.1, SNARE if style != 1 else CLAP, 100, DRUMS)
            add(when, 0.1, cymbal, 85, DRUMS)
            if style != 2:
                add(when + swing * beat, 0.1, cymbal, 65, DRUMS)
            if style == 0 and rng.random() < 0.3:
                add(when + beat / 2, 0.1, KICK, 90, DRUMS)
        if harmony:
            root = key + int([0, 5, 7, 3][(number // 4) % 4])
            add(when, 0.8 * beat, root, 95, 1, bass)
            if place == 0 or style == 2:
                for step in (12, 16, 19):
                    add(when, (3.5 if place == 0 and style != 2 else 0.6) * beat, root + step, 80, 2, chords)
    return notes


def _entry(name: str, noise: str, reaches: tuple[int, int]) -> Network:
    return Network(
        f"tempocnn {name}",
        "tempo of music",
        "published",
        noise,
        reaches,
        f"tempocnn/models/{name}.h5, model_config",
        partial(tempo, name),
        64,
    )


NETWORKS = (
    _entry("deeptemp_k8", "Dropout 0.1 after each of six blocks", (10, 12)),
    _entry("deepsquare_k8", "Dropout 0.3 after each of six blocks", (10, 12)),
    _entry("ismir2018", "Dropout 0.5 on the flattened features", (2, 10)),
)
