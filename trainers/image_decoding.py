"""Decodes image files of strangers: four formats, no program started, no picture that unpacks to more than it may."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from vsfix.graph_passes.errors import DataError, MissingComponentError

if TYPE_CHECKING:
    from PIL.Image import Image

# No others: pillow takes a file for what it holds, whatever its name, and runs Ghostscript on PostScript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


def decode_image(source: Path | bytes, name: str) -> Image:
    """One image in three channels of eight bits.

    Args:
        source: a file, or what stands in one.
        name: what messages call it.

    Raises:
        DataError: damaged, of another format, of more than eight bits a channel, which pillow would cut off at white,
            or of more pixels than pillow takes for no attack (some 90 million).
        MissingComponentError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingComponentError("images: pillow is not installed; run: pip install 'vsfix[train]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
                if image.mode.startswith(("I", "F")):
                    raise DataError(
                        f"{name}: more than eight bits a channel (mode {image.mode}); bring it to eight bits first"
                    )
                return image.convert("RGB")
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file surfaces as whatever a decoder of pillow stumbles into
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{name}: can't be decoded ({reason}); remove or replace the file") from None
