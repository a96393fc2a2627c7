"""Image files to RGB pixels: what a file may be, and every way in which it can be wrong, by name."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL import __version__ as pillow_version

from manifests.identity import image_key
from pipeline.core.image_files import ItemError, ReadError, locate

Image.init()  # here, and not by whichever thread meets an odd file first
# Raster formats only: Pillow's EPS and WMF readers call other programs.
_RASTER = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "ICO")
FORMATS = tuple(kind for kind in _RASTER if kind in Image.OPEN)  # a Pillow may be built without some
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs (a quarter GiB of RGB), an error here
MAX_CHUNK = 16 << 20  # unpacked bytes of a text or color profile in a PNG; Pillow's own limit of 1 MiB refuses pictures
_BROKEN_EXIF = (SyntaxError, ValueError, KeyError, TypeError, OSError, IndexError, ArithmeticError, AttributeError)

# Above its limit Pillow only warns, and a warning on stderr does not stop a bomb.
warnings.simplefilter("error", Image.DecompressionBombWarning)
PngImagePlugin.MAX_TEXT_CHUNK = MAX_CHUNK


class DecodeError(ItemError):
    """The bytes are not an image that can be used."""

    stage = "decode"


def read(root: Path, file: str, expected: bytes | None = None) -> bytes:
    """The bytes of ``root / file``. ``expected``: the content key it must have. Raises ReadError, DecodeError (empty)."""
    path = locate(root, file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ReadError(f"cannot be read: {error.strerror or error}") from None
    if expected is not None and image_key(data) != expected:
        raise ReadError("the file changed while the job was running; run the same command again")
    if not data:
        raise DecodeError("the file is empty")
    return data


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """8-bit RGB pixels as a viewer shows them: EXIF orientation applied, first frame, alpha over white.

    16-bit grey is scaled to 8 bits. Raises DecodeError with the reason.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DecodeError(f"{width}x{height} pixels, limit {max_pixels}: a decompression bomb?")
            image.seek(0)
            image.load()
            return _rgb(_upright(image))
    except ItemError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DecodeError(f"more pixels than the limit of {max_pixels}: a decompression bomb?") from None
    except MemoryError:
        raise DecodeError("not enough memory to decode it") from None
    except Exception as error:  # on bad bytes Pillow's plugins raise struct.error, zlib.error, IndexError ...
        raise DecodeError(f"cannot be decoded: {_one_line(error)}") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN_EXIF:  # an unreadable EXIF block states no orientation; the pixels are fine
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        return _from_deep(image)
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit grey to RGB; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DecodeError(f"mode {image.mode} has no defined brightness range: convert it to 8 or 16 bits a channel")
    return Image.fromarray((values.astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def decoder() -> str:
    """The decode back end, a semantic field of every fingerprint that reads pixels."""
    return f"pillow {pillow_version.split('.')[0]}"
