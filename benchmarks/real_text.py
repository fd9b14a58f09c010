"""Lines of text: the recogniser of PP-OCRv4, as the wheel of rapidocr-onnxruntime holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from real_entry import Array, Case, Metric, Missing, Network, Outputs, Place

FONTS = Path("/usr/share/fonts/truetype")
HEIGHT, WIDTH = 48, 320
WORDS = (
    "the quick network learns under noise and answers without it each layer keeps a mean and a variance of what it saw "
    "while training station harbour ticket invoice total amount balance street number railway museum garden window "
    "Monday Friday April October North South Berlin London Paris Madrid Vienna Oslo Company Limited Service Customer "
    "Receipt Order Delivery Address Telephone Warning Exit Platform Keep Left Private Parking Open Closed Fresh Coffee"
).split()


def recogniser(place: Place) -> Case:
    """The file as it is shipped, with the noise of its neck told by the names of the tensors.

    PaddleOCR, ppocr/modeling/necks/rnn.py, `EncoderWithSVTR.__init__`: drop_rate=0.1, attn_drop_rate=0.1, drop_path=0.
    and ppocr/modeling/backbones/rec_svtrnet.py: `Attention.forward` drops the softmax and the projection, `Mlp.forward`
    what follows the activation and the second layer. The backbone has no noise, and its BatchNorms are folded.
    """
    wheel = place.wheel("rapidocr-onnxruntime", "1.4.4")
    model = onnx.load(wheel / "rapidocr_onnxruntime" / "models" / "ch_PP-OCRv4_rec_infer.onnx")
    held = {entry.key: entry.value for entry in model.metadata_props}
    letters = ["", *held["character"].splitlines(), " "]  # the first is CTC's blank
    rows, _ = lines(place.count(96), 1)
    test, texts = lines(place.count(300), 2)
    (name,) = (entry.name for entry in model.graph.input)
    (answer,) = (entry.name for entry in model.graph.output)

    def score(outputs: Outputs) -> tuple[Array, ...]:
        found = [decode(array, letters) for array in outputs[answer].argmax(2)]
        pairs = list(zip(found, texts, strict=True))
        letter = [100 * max(0.0, 1 - edits(one, truth) / len(truth)) for one, truth in pairs]
        return np.array(letter), np.array([100.0 * (one == truth) for one, truth in pairs])

    return Case(
        model,
        {name: rows},
        {name: test},
        score,
        (Metric("characters right, %"), Metric("lines right, %")),
        noise=tuple(f"{tensor}=dropout:0.1" for tensor in noisy_tensors(model)),
    )


def noisy_tensors(model: onnx.ModelProto) -> list[str]:
    """The outputs of the softmaxes, projections, activations and second layers of the two attention blocks."""
    nodes = list(model.graph.node)
    made = {output: node for node in nodes for output in node.output}
    found: list[str] = []
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for given in node.input:
            readers.setdefault(given, []).append(node)
    for node in nodes:
        if node.op_type == "Softmax" and any(reader.op_type == "MatMul" for reader in readers.get(node.output[0], [])):
            found.append(node.output[0])
        if node.op_type != "Add" or made.get(node.input[0], node).op_type != "MatMul":
            continue  # what follows is a linear layer with its bias
        after = {reader.op_type for reader in readers.get(node.output[0], [])}
        if after == {"Add"}:  # goes into the residual sum: a projection, or the second layer of an MLP
            found.append(node.output[0])
        elif "Sigmoid" in after or {"Mul"} == after:  # swish, which Paddle writes as x * sigmoid(beta x)
            (swish,) = (reader for reader in readers[node.output[0]] if any("swish" in out for out in reader.output))
            found.append(swish.output[0])
    return found


def decode(classes: Array, letters: list[str]) -> str:
    """Greedy CTC: repeated classes are one, blanks are nothing."""
    first = np.concatenate([[True], classes[1:] != classes[:-1]])
    return "".join(letters[number] for number in classes[first & (classes != 0)])


def edits(one: str, other: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        above, row[0] = row[0], number
        for place, wanted in enumerate(other, 1):
            above, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, above + (letter != wanted))
    return row[-1]


def lines(count: int, seed: int) -> tuple[Array, list[str]]:
    """Degraded images of lines, float32 (N, 3, 48, 320) in [-1, 1], and what they say."""
    fonts = sorted(str(path) for folder in ("dejavu", "liberation") for path in (FONTS / folder).glob("*.ttf"))
    fonts = [path for path in fonts if "Math" not in path]
    if not fonts:
        raise Missing("apt-get install fonts-dejavu-core fonts-liberation")
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 3, HEIGHT, WIDTH), dtype=np.float32)
    texts = []
    for number in range(count):
        texts.append(_text(rng))
        image = _drawn(texts[-1], str(rng.choice(fonts)), rng)
        width = min(WIDTH, max(1, round(image.width * HEIGHT / image.height)))
        pixels = np.asarray(image.resize((width, HEIGHT), Image.Resampling.BILINEAR), dtype=np.float32)
        images[number, :, :, :width] = (pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return images, texts


def _text(rng: np.random.Generator) -> str:
    parts: list[str] = []
    while len(" ".join(parts)) < rng.integers(6, 16):
        kind = rng.integers(6)
        word = str(rng.choice(WORDS))
        parts.append(
            [
                word,
                word,
                word.upper(),
                f"{rng.integers(10**5)}",
                f"{rng.uniform(1, 999):.2f}",
                f"No.{rng.integers(99)}",
            ][kind]
        )
    return " ".join(parts)


def _drawn(text: str, font: str, rng: np.random.Generator) -> Image.Image:
    """One line with its colours, tilt, blur, low resolution and pixel noise."""
    face = ImageFont.truetype(font, 40)
    left, top, right, bottom = face.getbbox(text)
    margin = int(rng.integers(3, 9))
    paper, ink = rng.uniform(110, 255, 3), rng.uniform(0, 110, 3)
    if rng.random() < 0.25:
        paper, ink = ink, paper
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    background: Any = tuple(int(value) for value in paper)
    image = Image.new("RGB", size, background)
    colour: Any = tuple(int(value) for value in ink)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=face, fill=colour)
    image = image.rotate(rng.uniform(-1.5, 1.5), Image.Resampling.BILINEAR, fillcolor=background)
    height = int(rng.integers(13, 40))
    image = image.resize((max(8, round(image.width * height / image.height)), height), Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    pixels = np.asarray(image, dtype=np.float32) + rng.normal(0, rng.uniform(2, 30), (*image.size[::-1], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


NETWORKS = (
    Network(
        "PP-OCRv4 recogniser",
        "text lines",
        "published",
        "Dropout 0.1 in the two attention blocks of its neck",
        (3, 6),
        "PaddleOCR ppocr/modeling/necks/rnn.py EncoderWithSVTR, backbones/rec_svtrnet.py Attention, Mlp",
        recogniser,
        32,
    ),
)
