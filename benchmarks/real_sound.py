"""Sound whose truth is known: notes and rhythms written as MIDI and played by fluidsynth, speech said by espeak-ng."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from real_entry import Array, Missing

SOUND_FONTS = Path("/usr/share/sounds/sf2")
FONT_FILES = ("FluidR3_GM.sf2", "TimGM6mb.sf2")
DRUMS = 9  # the channel of General MIDI that plays drums, by these pitches
KICK, SNARE, CLAP, CLOSED, OPEN, RIDE = 36, 38, 39, 42, 46, 51
_TICKS = 480  # of a second, at the tempo that every file is written with


class Note(NamedTuple):
    """One note: when it sounds, in seconds; its pitch and loudness, 0 to 127; its channel and that one's instrument."""

    start: float
    length: float
    pitch: int
    velocity: int
    channel: int = 0
    program: int = 0


def play(notes: Sequence[Note], seconds: float, rate: int, font: str = FONT_FILES[0]) -> Array:
    """The sound of some notes, float32 in [-1, 1], one channel.

    Raises:
        Missing: fluidsynth or the sound font is not installed.
    """
    if shutil.which("fluidsynth") is None or not (SOUND_FONTS / font).exists():
        raise Missing("apt-get install fluidsynth fluid-soundfont-gm timgm6mb-soundfont")
    with tempfile.TemporaryDirectory() as folder:
        midi, sound = Path(folder) / "notes.mid", Path(folder) / "notes.wav"
        midi.write_bytes(midi_file(notes))
        command = ["fluidsynth", "-ni", "-q", "-R", "0", "-C", "0", "-r", str(rate), "-F", str(sound), "-T", "wav"]
        subprocess.run([*command, str(SOUND_FONTS / font), str(midi)], check=True, capture_output=True)
        both = read_wave(sound)
    wanted = round(seconds * rate)
    return np.pad(both[:wanted], (0, max(0, wanted - len(both))))


def midi_file(notes: Sequence[Note]) -> bytes:
    """A standard MIDI file of one track at 60 quarters a minute, so that a second is a quarter."""
    events: list[tuple[int, int, bytes]] = []
    for note in notes:
        start, end = round(note.start * _TICKS), round((note.start + note.length) * _TICKS)
        if note.channel != DRUMS:
            events.append((start, 1, bytes([0xC0 | note.channel, note.program])))
        events.append((start, 2, bytes([0x90 | note.channel, note.pitch, note.velocity])))
        events.append((end, 0, bytes([0x80 | note.channel, note.pitch, 0])))
    track, now = b"\x00\xff\x51\x03" + (1_000_000).to_bytes(3, "big"), 0
    for when, _, event in sorted(events):
        track += _delta(when - now) + event
        now = when
    track += b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, _TICKS) + b"MTrk" + struct.pack(">I", len(track)) + track


def _delta(ticks: int) -> bytes:
    """A time difference in groups of seven bits, the highest first."""
    groups = [ticks & 0x7F]
    while ticks := ticks >> 7:
        groups.append(ticks & 0x7F | 0x80)
    return bytes(reversed(groups))


def read_wave(path: Path) -> Array:
    """A WAV file of 16 bits, its channels averaged, float32 in [-1, 1]."""
    with wave.open(str(path)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        return np.asarray(values.reshape(-1, file.getnchannels()).mean(1) / 32768, dtype=np.float32)


def mel_spectrogram(
    sound: Array, rate: int, size: int, hop: int, bands: int, low: float = 0.0, high: float = 0.0, power: float = 2.0
) -> Array:
    """As librosa by default: Hann windows around each frame, zeros outside, Slaney's mel scale; (bands, frames)."""
    padded = np.pad(sound.astype(np.float64), size // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    spectrum = np.abs(np.fft.rfft(frames * window, axis=1)) ** power
    return np.asarray(mel_filters(rate, size, bands, low, high or rate / 2) @ spectrum.T, dtype=np.float32)


def mel_filters(rate: int, size: int, bands: int, low: float, high: float) -> Array:
    """Triangles of equal area on Slaney's scale: linear up to 1 kHz, 27 steps for each factor of 6.4 above."""
    step = np.log(6.4) / 27

    def to_mel(hertz: float) -> float:
        return hertz * 3 / 200 if hertz < 1000 else 15 + float(np.log(hertz / 1000)) / step

    mels = np.linspace(to_mel(low), to_mel(high), bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
    bins = np.fft.rfftfreq(size, 1 / rate)
    rise = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.asarray(np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None])


def with_noise(sound: Array, decibel: float, rng: np.random.Generator) -> Array:
    """The sound under white noise of that signal to noise."""
    level = float(np.sqrt((sound.astype(np.float64) ** 2).mean())) * 10 ** (-decibel / 20)
    return np.asarray(sound + rng.normal(0, level, sound.shape), dtype=np.float32)
