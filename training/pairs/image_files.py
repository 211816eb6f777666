"""Images, masks and captions from files."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

# Formats that Pillow knows by name and leaves to other programs to decode
_DECODED_ELSEWHERE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# What decoders raise for files that are broken, cut short, no images at all, or absurdly large.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@cache
def endings() -> frozenset[str]:
    """Return the endings of the image files that are read, such as ".png": what Pillow reads, as it was built."""
    known = Image.registered_extensions()
    return frozenset(end for end, kind in known.items() if kind in Image.OPEN and kind not in _DECODED_ELSEWHERE)


def is_image(path: Path) -> bool:
    """Return True if a file is an image, by its ending."""
    return path.suffix.lower() in endings()


def passed_over(name: str) -> bool:
    """Returns True if a file or folder of that name is hidden, or a leftover of an archive."""
    return name.startswith(".") or name == "__MACOSX"


def read_image(path: Path) -> Tensor:
    """(H, W, 3) in [0, 1], upright by the camera's note of orientation, on white where it is transparent.

    Grey, palette, CMYK and 16-bit images are converted; of a moving image the first frame is taken.
    Raises ValueError, naming the file, if it cannot be read whole.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            pixels = np.array(_as_rgb(ImageOps.exif_transpose(opened)), dtype=np.float32)
    except _BROKEN as error:
        raise ValueError(f"Cannot read the image {path}: {str(error) or type(error).__name__}.") from error
    return torch.from_numpy(pixels / 255)


def read_mask(path: Path) -> Tensor:
    """(H, W) in [0, 1], white counting as 1. Raises ValueError, naming the file, if it cannot be read whole."""
    red, green, blue = read_image(path).unbind(-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue  # luma, ITU-R BT.601


def read_caption(path: Path) -> str:
    """A prompt from a text file, on one line. Raises ValueError, naming the file, if it is not UTF-8 text."""
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the caption {path}: {error}.") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its numbers are 32-bit floats, whose white is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow also hands out as 32-bit integers
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
