"""Decoding of image files to RGB pixels: accepted formats and errors with reasons."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL import __version__ as pillow_version

from manifests.identity import image_key
from pipeline.core.image_files import ItemError, ReadError, read_bytes

Image.init()  # here rather than lazily in a worker thread
# Raster formats only: Pillow's EPS and WMF readers run external programs.
_RASTER = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "ICO")
FORMATS = tuple(kind for kind in _RASTER if kind in Image.OPEN)  # Pillow may be built without some
MAX_PIXELS = 89_478_485  # Pillow's limit against decompression bombs (256 MiB of RGB), here an error
MAX_CHUNK = 16 << 20  # unpacked bytes of a text or color profile in a PNG; Pillow's 1 MiB refuses valid images
ORIENTATION = 0x0112  # tag of EXIF
_BROKEN_EXIF = (SyntaxError, ValueError, KeyError, TypeError, OSError, IndexError, ArithmeticError, AttributeError)

# Above its limit Pillow only warns, which does not prevent decompression bombs.
warnings.simplefilter("error", Image.DecompressionBombWarning)
PngImagePlugin.MAX_TEXT_CHUNK = MAX_CHUNK


class DecodeError(ItemError):
    """The bytes are not a usable image."""

    stage = "decode"


def read(root: Path, file: str, expected: bytes | None = None) -> bytes:
    """Return the bytes of the image ``root / file``. ``expected``: content key. Raises ReadError, DecodeError (empty file)."""
    data = read_bytes(root, file)
    if expected is not None and image_key(data) != expected:
        raise ReadError("the file changed while the job was running; run the same command again")
    if not data:
        raise DecodeError("the file is empty")
    return data


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to 8-bit RGB: EXIF orientation applied, first frame, alpha over white, 16-bit gray scaled to 8 bits.

    Raises DecodeError with the reason.
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
    except Exception as error:  # Pillow's plugins raise struct.error, zlib.error, IndexError ...
        raise DecodeError(f"cannot be decoded: {one_line(error)}") from None


def _upright(image: Image.Image) -> Image.Image:
    try:  # exif_transpose would copy an image that is upright
        return ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image
    except _BROKEN_EXIF:  # without a readable orientation; the pixels are valid
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        return _from_deep(image)
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """Convert 16-bit gray to RGB; Pillow's conversion would clip values above 255 to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DecodeError(f"mode {image.mode} has no defined brightness range: convert it to 8 or 16 bits a channel")
    return Image.fromarray((values.astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")


def one_line(error: BaseException) -> str:
    """Format an error as a one-line reason for the ledger."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def decoder() -> str:
    """Return the decoding backend, a semantic field of extractors that read pixels."""
    return f"pillow {pillow_version.split('.')[0]}"
