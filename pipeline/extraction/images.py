"""Decoding of image files to RGB pixels, and preprocessing with bit-identical results in less time.

A channel of an 8-bit image has 256 values, so rescaling and normalizing are a table, computed by the image processor:
8-bit pixels travel to the device, which normalizes. Resizing and cropping are calls of Pillow, without the processor's
conversions. Both are compared with the processor on images of several shapes, and not used where one bit differs.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL import __version__ as pillow_version

from manifests.identity import image_key
from manifests.text import on_one_line
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
# (width, height): test cropping, enlarging, shrinking, padding
_CHECKED = ((224, 224), (53, 37), (31, 90), (640, 480), (7, 400))
_BY_LEVEL = {"do_rescale": False, "do_normalize": False}
_AS_IT_IS = {"do_resize": False, "do_center_crop": False}


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
    return on_one_line(f"{type(error).__name__}: {error}")


def decoder() -> str:
    """Return the decoding backend, a semantic field of extractors that read pixels."""
    return f"pillow {pillow_version.split('.')[0]}"


@dataclass(frozen=True)
class Pixels:
    """The 8-bit steps of ``processor``, and the output of its other steps for the levels 0..255 of each channel.

    ``levels``: [3, 256]. ``direct``: the 8-bit steps are calls of Pillow.
    """

    processor: Any
    levels: np.ndarray
    direct: bool

    @classmethod
    def of(cls, processor: Any) -> Pixels | None:
        """Return None for a processor with other steps than resize, crop, rescale and normalize (patches, masks)."""
        if not (getattr(processor, "do_rescale", False) and getattr(processor, "do_normalize", False)):
            return None
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
        try:
            found = processor(images=[ramp], return_tensors="np", **_AS_IT_IS)
            if list(found) != ["pixel_values"] or found["pixel_values"].shape != (1, 3, 16, 16):
                return None
            levels = np.ascontiguousarray(found["pixel_values"].reshape(3, 256))
            return next((p for d in (True, False) if (p := cls(processor, levels, d))._is_exact()), None)
        except (TypeError, ValueError, AttributeError):  # a processor with other steps or arguments
            return None

    def eight_bit(self, image: Image.Image) -> np.ndarray | None:
        """Return the resized and cropped pixels of one RGB image, uint8 [3, h, w]; None if there are none."""
        if self.direct and (found := _resized(self.processor, image)) is not None:
            return found
        pixels = self.processor(images=[image], return_tensors="np", **_BY_LEVEL)["pixel_values"][0]
        return pixels if pixels.dtype == np.uint8 and pixels.ndim == 3 and len(pixels) == 3 else None

    def table(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Return ``levels`` as a tensor for ``normalized``."""
        return torch.from_numpy(self.levels).to(device, dtype)

    def _is_exact(self) -> bool:
        table = self.table(torch.device("cpu"), torch.from_numpy(self.levels).dtype)
        for width, height in _CHECKED:
            pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            wanted = self.processor(images=[image], return_tensors="np")["pixel_values"][0]
            found = self.eight_bit(image)
            if found is None or not np.array_equal(normalized(torch.from_numpy(found[None]), table)[0].numpy(), wanted):
                return False
        return True


def normalized(pixels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the pixel values [n, 3, h, w] of ``pixels``, uint8 [n, 3, h, w], by ``table`` [3, 256].

    A table has the same values on every device, so the result has the same bits.
    """
    values = torch.empty(pixels.shape, dtype=table.dtype, device=pixels.device)
    for channel, row in enumerate(table):
        plane = pixels[:, channel]
        values[:, channel] = row.index_select(0, plane.reshape(-1).int()).view(plane.shape)
    return values


def resized_pixels(processor: Any, width: int, height: int) -> int:
    """Return the pixel count after the resize of a ``processor`` that scales the shorter side; 0 for a fixed size.

    For example, 100000 x 1 becomes 22400000 x 224.
    """
    size = getattr(processor, "size", None)
    short, long = (getattr(size, name, None) for name in ("shortest_edge", "longest_edge"))
    if not short or not getattr(processor, "do_resize", False):
        return 0
    scale = short / min(width, height)
    if long:
        scale = min(scale, long / max(width, height))
    return math.ceil(width * scale) * math.ceil(height * scale)


def _resized(processor: Any, image: Image.Image) -> np.ndarray | None:
    """Resize and crop as ``processor`` does; None for a step or a shape that is left to it."""
    found = geometry(processor, *image.size)
    if found is None:
        return None
    size, box = found
    if size != image.size:
        image = image.resize(size, resample=processor.resample)
    if box != (0, 0, *size):
        image = image.crop(box)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def geometry(processor: Any, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int, int, int]] | None:
    """Return ((width, height) after the resize, crop box in it) for an image; None for steps left to the processor.

    The box is (left, top, right, bottom), as for Pillow; the whole image without a crop.
    """
    if getattr(processor, "do_pad", False):
        return None
    if processor.do_resize:
        size = processor.size
        if size.longest_edge or size.max_height or size.max_width:
            return None
        if size.shortest_edge:
            short, long = size.shortest_edge, int(size.shortest_edge * max(width, height) / min(width, height))
            width, height = (short, long) if width <= height else (long, short)
        else:
            width, height = size.width, size.height
    if not getattr(processor, "do_center_crop", False):
        return (width, height), (0, 0, width, height)
    crop = processor.crop_size
    left, top = (width - crop.width) // 2, (height - crop.height) // 2
    if left < 0 or top < 0:  # bars around it
        return None
    return (width, height), (left, top, left + crop.width, top + crop.height)
