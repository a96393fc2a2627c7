"""JPEG decoding by torchvision and resizing by torch: ``extractor.decode = "torchvision"``, another decode than Pillow's.

On CUDA, nvJPEG decodes and the device resizes; elsewhere, libjpeg-turbo and torch do so in the decoding processes. The
bytes of a file decide who decodes it: torchvision a JPEG of one or three channels, Pillow everything else (PNG, CMYK,
truncated files, and what torchvision refuses), with a note in the ledger. All images are resized by torch, and rotated
by their EXIF orientation. Against Pillow's decode on a CPU, the resize alone differs (by at most a level or two of 256);
nvJPEG also rounds and upsamples color otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from pipeline.core.device import is_out_of_memory
from pipeline.extraction import hub
from pipeline.extraction.extractors.base import ExtractorError
from pipeline.extraction.images import MAX_PIXELS, ORIENTATION, DecodeError, Pixels, decode, geometry, one_line
from pipeline.extraction.transfer import copying

VERSION = 1  # increment when a change of this module, or of torchvision, alters pixels
REMARK = "decoded by Pillow: "  # in the ledger, and why
CPU_DECODER, CUDA_DECODER = "libjpeg-turbo", "nvjpeg"
_MODES: dict[Any, str] = {Pillow.Resampling.BILINEAR: "bilinear", Pillow.Resampling.BICUBIC: "bicubic"}
_START, _SCAN, _END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"  # markers: of the file, of the last scan, of its end
_CHECKED = (400, 300)  # (width, height)
_BATCH = 32  # JPEGs that are decoded together on a device
_INSTALL = "pip install 'fashion-ntm[gpu-decode]' with torchvision of the same build as torch (CUDA or CPU)"
_FIX = f"{_INSTALL}, or leave out extractor.decode"


@dataclass(frozen=True)
class Encoded:
    """JPEG for the device. ``width``, ``height``: before the rotation by ``orientation`` (EXIF, 1 to 8)."""

    data: bytes
    width: int
    height: int
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) after the rotation."""
        return (self.height, self.width) if self.orientation > 4 else (self.width, self.height)


class TorchvisionDecode:
    """Decode and resize for one image processor. ``batched``: decode batches on ``device``, by default on CUDA.

    ``levels``: the processor's ``Pixels``. Raises ModelError for a processor with other steps.
    """

    def __init__(
        self, model: str, processor: Any, levels: Pixels | None, device: torch.device, batched: bool | None = None
    ):
        self.device = device
        self.batched = device.type == "cuda" if batched is None else batched
        self.images_per_job = _BATCH if self.batched else 0
        self._processor, self._mode = processor, _MODES.get(getattr(processor, "resample", None), "")
        if levels is None or not self._mode or geometry(processor, *_CHECKED) is None:
            steps = "other steps than a bilinear or bicubic resize, a crop and a normalization"
            fix = 'so extractor.decode = "torchvision" cannot do the same: use "pillow"'
            name = type(processor).__name__
            raise hub.ModelError(f"model {model!r}: its image processor {name} has {steps}, {fix}")

    @property
    def decoder(self) -> str:
        """Name of the JPEG decoder, which a store's sessions must share."""
        return CUDA_DECODER if self.device.type == "cuda" else CPU_DECODER

    def semantic(self) -> dict[str, Any]:
        """Return the fingerprint field of this decode; rows of Pillow's decode have none."""
        return {"jpeg": f"torchvision, resized by torch, version {VERSION}"}

    def require(self) -> None:
        """Raise ExtractorError, naming the package, if this machine cannot decode."""
        out = io.BytesIO()
        Pillow.new("RGB", (16, 16), "red").save(out, "JPEG")
        try:
            self._decode([Encoded(out.getvalue(), 16, 16)])
        except ExtractorError:
            raise
        except Exception as error:
            what = "nvJPEG of torchvision" if self.device.type == "cuda" else "torchvision"
            raise ExtractorError(f"{what} cannot decode here: {one_line(error)}; {_FIX}") from None

    def prepare(self, data: bytes, size_of: Any) -> tuple[dict[str, np.ndarray] | Encoded, str]:
        """Return (pixels {"pixel_values": uint8 [3, h, w]}, or the JPEG if it is decoded in batches; why Pillow decoded it).

        ``size_of``: called with (width, height), raises DecodeError for a size that is not accepted. Thread-safe.
        """
        found = header(data)
        if isinstance(found, Encoded):
            size_of(*found.size)
            if self.batched:
                return found, ""
            try:
                return _arrays(self._resized(*self._decode([found]))), ""
            except ExtractorError:
                raise
            except Exception as error:
                found = f"torchvision refuses it: {one_line(error)}"
        return self.from_pillow(data, size_of), found

    def from_pillow(self, data: bytes, size_of: Any) -> dict[str, np.ndarray]:
        """Return the pixels of any image file, decoded by Pillow. Raises DecodeError."""
        image = decode(data)
        size_of(*image.size)
        return self.resized(image)

    def resized(self, image: Pillow.Image) -> dict[str, np.ndarray]:
        """Return the pixels of an RGB image, resized by torch on the CPU."""
        return _arrays(self._resized(torch.from_numpy(np.array(image)).permute(2, 0, 1)))

    def decoded(self, prepared: Sequence[Any]) -> list[tuple[Any, str]]:
        """Decode and resize the ``Encoded`` of ``prepared`` on the device, the others are returned as they are.

        Return for each (its pixels as uint8 tensor [3, h, w], or a DecodeError; why Pillow decoded it). On CUDA the work
        is queued on the copy stream, which ``transfer.stack`` uses too.
        """
        found: list[tuple[Any, str]] = [(one, "") for one in prepared]
        places = [n for n, one in enumerate(prepared) if isinstance(one, Encoded)]
        with copying(self.device):
            for some in _within(places, [prepared[n].width * prepared[n].height for n in places]):
                for n, one in zip(some, self._batch([prepared[n] for n in some]), strict=True):
                    found[n] = one
        return found

    def _batch(self, encoded: list[Encoded]) -> list[tuple[Any, str]]:
        """Return ``decoded`` of JPEGs that fit in memory together; one by one if any is refused."""
        try:
            images = self._decode(encoded)
            made: list[Any] = [None] * len(images)
            for shape in {image.shape for image in images}:
                places = [n for n, image in enumerate(images) if image.shape == shape]
                for n, pixels in zip(places, self._resized(*(images[n] for n in places)), strict=True):
                    made[n] = {"pixel_values": pixels}, ""
            return made
        except ExtractorError:
            raise
        except (RuntimeError, torch.OutOfMemoryError) as error:
            refused = f"torchvision refuses it: {one_line(error)}"
            why = "the device's memory is full" if is_out_of_memory(error) else refused
        if len(encoded) > 1:
            return [found for one in encoded for found in self._batch([one])]
        try:
            pixels = self.from_pillow(encoded[0].data, lambda *size: None)
        except DecodeError as error:
            return [(error, "")]
        return [({"pixel_values": torch.from_numpy(pixels["pixel_values"]).to(self.device)}, why)]

    def _decode(self, encoded: Sequence[Encoded]) -> list[torch.Tensor]:
        """Return upright images, uint8 [3, height, width], on the device (on a GPU) or the CPU."""
        vision = _torchvision()
        data = [torch.frombuffer(bytearray(one.data), dtype=torch.uint8) for one in encoded]
        where = self.device if self.device.type == "cuda" else torch.device("cpu")
        if where.type == "cuda":  # nvJPEG writes on a stream of its own into memory that this stream may still read
            torch.cuda.current_stream(where).synchronize()
        found = vision.decode_jpeg(data, mode=vision.ImageReadMode.RGB, device=where)
        return [upright(pixels, one.orientation) for pixels, one in zip(found, encoded, strict=True)]

    def _resized(self, *images: torch.Tensor) -> torch.Tensor:
        """Resize and crop images of one shape: uint8 [3, height, width] each -> uint8 [n, 3, h, w].

        On a CPU torch computes in 8 bits, elsewhere in float32, rounded.
        """
        found = geometry(self._processor, images[0].shape[2], images[0].shape[1])
        assert found is not None  # like the one of _CHECKED
        (width, height), (left, top, right, bottom) = found
        pixels = images[0][None] if len(images) == 1 else torch.stack(images)
        if pixels.shape[-2:] != (height, width):
            values = pixels if pixels.device.type == "cpu" else pixels.float()
            values = torch.nn.functional.interpolate(values, (height, width), mode=self._mode, antialias=True)
            pixels = values if values.dtype == torch.uint8 else values.round_().clamp_(0, 255).to(torch.uint8)
        return pixels[:, :, top:bottom, left:right].contiguous()


def header(data: bytes) -> Encoded | str:
    """Return the JPEG if torchvision may decode it, else the reason why Pillow does."""
    if not data.startswith(_START):
        return "no JPEG"
    try:
        with Pillow.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
            mode, (width, height) = image.mode, image.size
            turn = _orientation(image)
    except Exception:  # Pillow's plugins raise struct.error, IndexError ...
        return "the header of the JPEG is broken"
    if mode not in ("L", "RGB"):
        return f"a JPEG in {mode}"
    if width * height > MAX_PIXELS:
        return "too many pixels"
    if data.rfind(_END) < data.rfind(_SCAN):  # nvJPEG may fill the rest with gray
        return "a JPEG without its end"
    return Encoded(data, width, height, turn)


def _orientation(image: Pillow.Image) -> int:
    try:
        found = image.getexif().get(ORIENTATION, 1)
        return found if found in range(1, 9) else 1
    except Exception:  # broken EXIF: without a readable orientation, as ``images.decode`` has it
        return 1


def upright(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Return ``pixels`` [3, height, width] mirrored and rotated by an EXIF orientation."""
    if orientation > 4:
        pixels = pixels.transpose(1, 2)
    flips = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation)
    return pixels.flip(flips) if flips else pixels


def _arrays(pixels: torch.Tensor) -> dict[str, np.ndarray]:
    return {"pixel_values": pixels[0].numpy()}


def _within(places: Sequence[int], pixels: Sequence[int]) -> list[list[int]]:
    """Divide ``places`` in order, each part of at most MAX_PIXELS together."""
    parts: list[list[int]] = []
    total = MAX_PIXELS
    for place, count in zip(places, pixels, strict=True):
        if total + count > MAX_PIXELS:
            parts.append([])
            total = 0
        parts[-1].append(place)
        total += count
    return parts


@cache
def _torchvision() -> Any:
    """Return ``torchvision.io``. Raises ExtractorError if it is absent or does not load beside this torch."""
    try:
        from torchvision import io as found
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        what = 'extractor.decode = "torchvision" needs torchvision, which is not installed'
        raise ExtractorError(f"{what}: {_FIX}") from None
    except Exception as error:  # operators of another torch: RuntimeError, OSError, AttributeError ...
        what = f"torchvision does not load beside torch {torch.__version__}: {one_line(error)}"
        raise ExtractorError(f"{what}; {_FIX}") from None
    return found
