"""Speech and seismograms: a block of the Conformer on spoken commands, and a detector after EQTransformer."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from real_entry import Array, Case, Metric, Missing, Network, Outputs, Place, only
from real_sound import mel_spectrogram, read_wave, with_noise
from real_training import Data, classifier_case, trained_case
from torch import nn
from torch.nn import functional

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")  # of the speech commands data set
VOICES = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp")
BANDS, FRAMES, WIDTH = 32, 48, 48


class FeedForward(nn.Module):
    """torchaudio models/conformer.py, _FeedForwardModule: LayerNorm, linear, SiLU, Dropout, linear, Dropout."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.SiLU(),
            nn.Dropout(drop),
            nn.Linear(4 * WIDTH, WIDTH),
            nn.Dropout(drop),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Half of it is added."""
        answer: torch.Tensor = x + 0.5 * self.layers(x)
        return answer


class Convolution(nn.Module):
    """torchaudio models/conformer.py, _ConvolutionModule: GLU, depthwise convolution, BatchNorm, SiLU, Dropout."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.Sequential(
            nn.Conv1d(WIDTH, 2 * WIDTH, 1),
            nn.GLU(1),
            nn.Conv1d(WIDTH, WIDTH, 15, 1, 7, groups=WIDTH),
            nn.BatchNorm1d(WIDTH),
            nn.SiLU(),
            nn.Conv1d(WIDTH, WIDTH, 1),
            nn.Dropout(drop),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Over (N, time, width)."""
        return x + self.layers(self.norm(x).transpose(1, 2)).transpose(1, 2)


class Conformer(nn.Module):
    """Two blocks without their attention: feed forward, convolution, feed forward, LayerNorm; the mean over time."""

    def __init__(self, drop: float = 0.1) -> None:
        super().__init__()
        self.first = nn.Linear(BANDS, WIDTH)
        parts = [[FeedForward(drop), Convolution(drop), FeedForward(drop), nn.LayerNorm(WIDTH)] for _ in range(2)]
        self.blocks = nn.Sequential(nn.Dropout(drop), *parts[0], *parts[1])
        self.last = nn.Linear(WIDTH, len(WORDS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of ten words, of log mel spectra (N, time, bands)."""
        answer: torch.Tensor = self.last(self.blocks(self.first(x)).mean(1))
        return answer


def conformer(place: Place) -> Case:
    """Words by several voices under noise; other utterances to test with."""
    spoken = place.kept("commands", lambda: _commands(place.count(900)))
    half = len(spoken["sound"]) * 5 // 9
    head, tail = spoken["sound"][:half], spoken["sound"][half:]
    inputs = np.concatenate([_spectra(head, seed) for seed in range(4)])
    words, truth = spoken["word"][:half], spoken["word"][half:]
    data = Data(inputs, np.tile(words, 4), _spectra(head, 10)[:128], _spectra(tail, 11), truth)
    return classifier_case(place, "conformer", Conformer(), data, 350)


def _commands(count: int) -> dict[str, Array]:
    """Sound of one second at 11,025 Hz, (N, 11025), and which word it is."""
    if shutil.which("espeak-ng") is None:
        raise Missing("apt-get install espeak-ng")
    rng = np.random.default_rng(0)
    words = rng.integers(len(WORDS), size=count)
    sounds = np.zeros((count, 11_025), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        for sound, word in zip(sounds, words, strict=True):
            voice = f"{rng.choice(VOICES)}+{rng.choice(['m1', 'm2', 'm3', 'm4', 'm7', 'f1', 'f2', 'f3', 'f4', 'f5'])}"
            options = ["-v", voice, "-s", str(rng.integers(110, 230)), "-p", str(rng.integers(10, 90)), "-w", str(path)]
            subprocess.run(["espeak-ng", *options, WORDS[word]], check=True, capture_output=True)
            found = read_wave(path)[::2][: len(sound)]  # of 22,050 Hz
            start = rng.integers(0, len(sound) - len(found) + 1)
            sound[start : start + len(found)] = found
    return {"sound": sounds, "word": words}


def _spectra(sounds: Array, seed: int) -> Array:
    """Log mel spectra (N, 48, 32) under white noise of -5 to 20 dB, each about its own mean."""
    rng = np.random.default_rng(seed)
    noisy = [with_noise(sound, rng.uniform(-5, 20), rng) for sound in sounds]
    mel = np.stack([mel_spectrogram(sound, 11_025, 512, 225, BANDS)[:, :FRAMES].T for sound in noisy])
    logs = np.log(mel + 1e-4)
    return np.asarray((logs - logs.mean((1, 2), keepdims=True)) / 3, dtype=np.float32)


class Residual(nn.Module):
    """EQTransformer core/EqT_utils.py, _block_CNN_1: BN, ReLU, SpatialDropout1D, convolution, twice; sum."""

    def __init__(self, channels: int, drop: float) -> None:
        super().__init__()
        parts = [
            [nn.BatchNorm1d(channels), nn.ReLU(), nn.Dropout1d(drop), nn.Conv1d(channels, channels, 3, 1, 1)]
            for _ in range(2)
        ]
        self.layers = nn.Sequential(*parts[0], *parts[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As long as x."""
        answer: torch.Tensor = x + self.layers(x)
        return answer


class Detector(nn.Module):
    """EqT_utils.py, cred2.__call__ without its recurrent layers: encoder, residual blocks, decoder of three outputs."""

    def __init__(self, drop: float = 0.1) -> None:
        super().__init__()
        sizes = [(3, 8, 11), (8, 16, 9), (16, 32, 7)]
        self.encoder = nn.Sequential(
            *(part for a, b, k in sizes for part in (nn.Conv1d(a, b, k, 1, k // 2), nn.ReLU(), nn.MaxPool1d(2)))
        )
        self.middle = nn.Sequential(*(Residual(32, drop) for _ in range(4)))
        self.norm = nn.BatchNorm1d(32)
        self.decoder = nn.ModuleList(
            nn.Conv1d(a, b, k, 1, k // 2) for a, b, k in [(32, 32, 7), (32, 16, 9), (16, 8, 11)]
        )
        self.last = nn.Conv1d(8, 3, 11, 1, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities of an earthquake, a P and an S onset at each time, (N, 3, time), of three components."""
        x = torch.relu(self.norm(self.middle(self.encoder(x))))
        for conv in self.decoder:
            x = torch.relu(conv(functional.interpolate(x, scale_factor=2.0)))
        return torch.sigmoid(self.last(x))


RATE, LENGTH = 25, 512  # samples a second


def detector(place: Place) -> Case:
    """Onsets of two waves in coloured noise."""
    inputs, targets, _ = _records(1500, 1)
    test, _, onsets = _records(place.count(800), 3)
    data = Data(inputs, targets, _records(128, 2)[0], test, onsets)

    def loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy(found, wanted, weight=1 + 9 * wanted)

    def score(answers: Outputs) -> tuple[Array, ...]:
        picks = only(answers)[:, 1:].argmax(2) / RATE
        errors = np.abs(picks - onsets)  # (N, 2), seconds
        return 100.0 * (errors < 0.3).mean(1), np.minimum(errors, 5).mean(1)

    metrics = [
        Metric("onsets within 0.3 s, %"),
        Metric("error, s, at most 5", higher_is_better=False, digits=3),
    ]
    return trained_case(place, "seismic", Detector(), data, loss, 500, score, metrics)


def _records(count: int, seed: int) -> tuple[Array, Array, Array]:
    """Standardised records (N, 3, 512), what is to be answered, and the onsets of P and S in seconds."""
    rng = np.random.default_rng(seed)
    time = np.arange(LENGTH) / RATE
    first = rng.uniform(2, 9, count)
    onsets = np.stack([first, first + rng.uniform(1, 6, count)], 1)
    noise = rng.normal(size=(count, 3, LENGTH + 8))
    records = sum(noise[..., lag : lag + LENGTH] * 0.8**lag for lag in range(8)) * 0.5
    for wave, (share, frequencies) in enumerate([((0.4, 0.4, 1.0), (3, 8)), ((1.0, 1.0, 0.5), (1, 4))]):
        since = time - onsets[:, wave, None]
        decay, strength = rng.uniform(1, 4, (count, 1)), rng.lognormal(0.7 + 0.5 * wave, 0.6, (count, 1))
        envelope = np.where(since > 0, np.exp(-np.maximum(since, 0) / decay), 0) * strength
        for axis in range(3):
            tone = np.sin(2 * np.pi * rng.uniform(*frequencies, (count, 1)) * since + rng.uniform(0, 6.3, (count, 1)))
            records[:, axis] += share[axis] * envelope * (tone + 0.5 * rng.normal(size=since.shape))
    records = (records - records.mean(2, keepdims=True)) / records.std((1, 2), keepdims=True)
    wanted = np.zeros((count, 3, LENGTH))
    wanted[:, 0] = (time >= onsets[:, :1]) & (time <= onsets[:, 1:] + 3)
    wanted[:, 1:] = np.maximum(0, 1 - np.abs(time - onsets[:, :, None]) / 0.4)
    return records.astype(np.float32), wanted.astype(np.float32), onsets


NETWORKS = (
    Network(
        "Conformer block",
        "spoken commands",
        "trained here",
        "Dropout 0.1 in feed-forward and convolution modules, on the residual",
        (2, 2),
        "torchaudio models/conformer.py _ConvolutionModule, _FeedForwardModule",
        conformer,
        64,
    ),
    Network(
        "EQTransformer-like detector",
        "onsets in seismograms",
        "trained here",
        "SpatialDropout 0.1 in each residual block",
        (8, 9),
        "EQTransformer core/EqT_utils.py _block_CNN_1",
        detector,
        64,
    ),
)
