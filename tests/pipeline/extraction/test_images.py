"""Every kind of file a user may have: what is read from it, or the reason why not."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from manifests.identity import image_key
from pipeline.core.image_files import locate
from pipeline.extraction import images
from pipeline.extraction.cost import BYTES_A_PIXEL
from pipeline.extraction.images import DecodeError, ReadError, decode, read

from .helpers import ROOT


def encoded(image: Pillow.Image, kind: str, **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def colour(data: bytes) -> tuple[int, ...]:
    image = decode(data)
    assert image.mode == "RGB"
    return tuple(int(v) for v in np.asarray(image)[image.height // 2, image.width // 2])


def near(found: tuple[int, ...], wanted: tuple[int, ...], tolerance: int = 6) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_common_formats(kind: str) -> None:
    image = Pillow.new("RGB", (20, 10), (200, 30, 60))
    assert near(colour(encoded(image, kind)), (200, 30, 60))


def test_cmyk_jpeg() -> None:
    data = encoded(Pillow.new("RGB", (16, 16), (10, 120, 220)).convert("CMYK"), "JPEG", quality=95)
    assert Pillow.open(io.BytesIO(data)).mode == "CMYK"
    assert near(colour(data), (10, 120, 220), 12)


def test_palette_with_and_without_transparency() -> None:
    image = Pillow.new("P", (8, 8), 0)
    image.putpalette([10, 200, 30, 255, 0, 0])
    assert colour(encoded(image, "PNG")) == (10, 200, 30)
    assert colour(encoded(image, "PNG", transparency=0)) == (255, 255, 255)


def test_alpha_is_laid_over_white() -> None:
    assert near(colour(encoded(Pillow.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG")), (255, 127, 127), 1)
    assert colour(encoded(Pillow.new("LA", (8, 8), (0, 0)), "PNG")) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.full((8, 8), 32768, dtype=np.uint16)
    data = encoded(Pillow.fromarray(values), "PNG")
    assert colour(data) == (127, 127, 127)
    assert colour(encoded(Pillow.fromarray(values), "TIFF")) == (127, 127, 127)


def test_bilevel_and_grey() -> None:
    assert colour(encoded(Pillow.new("1", (8, 8), 1), "PNG")) == (255, 255, 255)
    assert colour(encoded(Pillow.new("L", (8, 8), 77), "PNG")) == (77, 77, 77)


def test_float_image_is_refused_because_its_range_is_unknown() -> None:
    with pytest.raises(DecodeError, match="no defined brightness range"):
        decode(encoded(Pillow.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_first_frame_of_an_animation() -> None:
    frames = [Pillow.new("RGB", (8, 8), c) for c in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    for kind in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        assert near(colour(data), (255, 0, 0)), kind


def test_exif_orientation_is_applied() -> None:
    image = Pillow.new("RGB", (40, 20), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 20, 20))  # left half red
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    turned = decode(encoded(image, "JPEG", exif=exif, quality=95))
    assert turned.size == (20, 40)
    assert near(tuple(int(v) for v in np.asarray(turned)[5, 10]), (255, 0, 0), 12)


def test_broken_exif_does_not_cost_the_image() -> None:
    image = Pillow.new("RGB", (16, 16), (9, 99, 199))
    data = encoded(image, "JPEG", exif=b"Exif\0\0" + b"\xff" * 40, quality=95)
    assert near(colour(data), (9, 99, 199))


def test_a_png_with_a_large_text_or_color_profile_is_a_picture_within_a_bound() -> None:
    def png(size: int, profile: bool = False) -> bytes:
        about = PngInfo()
        about.add_text("XML:com.adobe.xmp", "x" * size, zip=True)
        how = {"icc_profile": b"p" * size} if profile else {"pnginfo": about}
        return encoded(Pillow.new("RGB", (16, 16), (9, 99, 199)), "PNG", **how)

    assert near(colour(png(4 << 20)), (9, 99, 199))
    assert near(colour(png(4 << 20, profile=True)), (9, 99, 199))
    with pytest.raises(DecodeError, match="too large"):
        decode(png(images.MAX_CHUNK + 1))


def test_truncated(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG"):
        whole = encoded(Pillow.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), kind)
        for share in (0.02, 0.3, 0.9):
            with pytest.raises(DecodeError):
                decode(whole[: int(len(whole) * share)])


@pytest.mark.parametrize("data", [b"hello world", b"<html></html>", b"\x00" * 500, b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(DecodeError, match="not an image of a known format"):
        decode(data)


def test_bomb_is_an_error_by_its_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 1000)
    small, large = encoded(Pillow.new("1", (50, 50)), "PNG"), encoded(Pillow.new("1", (300, 300)), "PNG")
    for data in (small, large):  # Pillow only warns up to twice its limit
        with pytest.raises(DecodeError, match="bomb"):
            decode(data, max_pixels=1000)
    assert decode(encoded(Pillow.new("1", (20, 50)), "PNG"), max_pixels=1000).size == (20, 50)
    assert images.MAX_PIXELS == 89_478_485


def test_read_checks_the_key_and_refuses_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"content")
    assert read(tmp_path, "a.jpg", image_key(b"content")) == b"content"
    with pytest.raises(ReadError, match="changed while the job was running"):
        read(tmp_path, "a.jpg", image_key(b"other"))
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DecodeError, match="empty"):
        read(tmp_path, "empty.jpg")


def test_paths_stay_inside_the_images_folder(tmp_path: Path) -> None:
    root, outside = tmp_path / "images", tmp_path / "secret.jpg"
    (root / "sub").mkdir(parents=True)
    outside.write_bytes(b"x")
    (root / "a.jpg").write_bytes(b"x")
    (root / "out.jpg").symlink_to(outside)
    (root / "in.jpg").symlink_to(root / "a.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    root = root.resolve()
    assert locate(root, "a.jpg") == locate(root, "in.jpg") == locate(root, "sub/../a.jpg") == root / "a.jpg"
    for file in ("../secret.jpg", str(outside), "out.jpg", "sub/../../secret.jpg"):
        with pytest.raises(ReadError, match="outside the images folder"):
            locate(root, file)
    with pytest.raises(ReadError, match=r"no such file: 'b\.jpg'"):
        locate(root, "b.jpg")
    with pytest.raises(ReadError):
        locate(root, "loop.jpg")
    with pytest.raises(ReadError):
        locate(root, "nul\0.jpg")
    for file in ("sub", "."):
        with pytest.raises(ReadError, match="not a regular file"):
            locate(root, file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_hang_the_job(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ReadError, match="not a regular file"):
        read(tmp_path.resolve(), "pipe.jpg")


MEASURE = """
import ctypes, sys
from pathlib import Path
from pipeline.extraction.images import decode

def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

for file in sys.argv[1:]:
    data = Path(file).read_bytes()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    size = decode(data).size
    print((status("VmHWM") - before) / (size[0] * size[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_a_pixel_takes_no_more_memory_than_a_plan_says(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 4), dtype=np.uint8)
    image, turned = Pillow.fromarray(noise).resize((1000, 1000)), Pillow.Exif()
    turned[images.ORIENTATION] = 6
    deep = Pillow.fromarray(np.asarray(image.convert("L")).astype(np.int32) * 257)
    for name, kind, what in (("a", "JPEG2000", image), ("b", "WEBP", image), ("c", "TIFF", deep)):
        (tmp_path / name).write_bytes(encoded(what, kind, exif=turned))
    code = [sys.executable, "-c", MEASURE, *map(str, sorted(tmp_path.iterdir()))]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(code, capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    found = [float(line) for line in done.stdout.splitlines()]
    assert len(found) == 3 and BYTES_A_PIXEL / 2 < max(found) < BYTES_A_PIXEL, found
