"""Reading odd and damaged images, and the ADM crop."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelwright.data import UnreadableImage, centre_crop, read_image
from pixelwright.data.transforms import TURNS, read_size

# Left half red, right half blue; 12 wide, 8 high.
PICTURE = np.zeros((8, 12, 3), np.uint8)
PICTURE[:, :6, 0] = 255
PICTURE[:, 6:, 2] = 255


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = read_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM", "TGA"])
def test_lossless_formats_give_the_pixels_back(kind: str) -> None:
    assert (pixels(encode(Image.fromarray(PICTURE), kind)) == PICTURE).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_close(kind: str) -> None:
    read = pixels(encode(Image.fromarray(PICTURE), kind, quality=95)).astype(int)
    assert abs(read[:, 1:4] - PICTURE[:, 1:4]).max() < 16


def test_cmyk_jpeg() -> None:
    read = pixels(encode(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=100)).astype(int)
    assert abs(read[2:6, 1:4] - [255, 0, 0]).max() < 16 and abs(read[2:6, 9:11] - [0, 0, 255]).max() < 16


def test_palette_with_transparency_shows_white_where_it_is_clear() -> None:
    image = Image.fromarray(PICTURE).quantize(4)
    clear = image.getpixel((0, 0))
    read = pixels(encode(image, "PNG", transparency=clear))
    assert (read[:, :6] == 255).all() and (read[:, 6:] == [0, 0, 255]).all()


def test_alpha_is_laid_on_white() -> None:
    alpha = np.full((8, 12, 1), 255, np.uint8)
    alpha[:4] = 0
    alpha[4:6] = 51  # a fifth
    read = pixels(encode(Image.fromarray(np.concatenate([PICTURE, alpha], 2))))
    assert (read[:4] == 255).all() and (read[6:] == PICTURE[6:]).all()
    assert (read[4, 0] == [255, 204, 204]).all()


def test_grey_with_alpha() -> None:
    image = Image.merge("LA", [Image.new("L", (3, 2), 40), Image.new("L", (3, 2), 0)])
    assert (pixels(encode(image)) == 255).all()


def test_rgb_with_a_transparent_colour() -> None:
    read = pixels(encode(Image.fromarray(PICTURE), transparency=(255, 0, 0)))
    assert (read[:, :6] == 255).all() and (read[:, 6:] == [0, 0, 255]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_brightness(kind: str) -> None:
    grey = np.linspace(0, 65535, 12 * 8).reshape(8, 12).astype(np.uint16)
    read = pixels(encode(Image.fromarray(grey), kind))
    assert (read == np.rint(grey / 257).astype(np.uint8)[..., None]).all()


def test_dark_sixteen_bit_image_stays_dark() -> None:
    assert pixels(encode(Image.fromarray(np.full((4, 4), 200, np.uint16)))).max() == 1


@pytest.mark.parametrize(("top", "white"), [(1.0, 1.0), (255.0, 255.0), (60000.0, 65535.0)])
def test_floating_point_tiff(top: float, white: float) -> None:
    values = np.linspace(0, top, 16, dtype=np.float32).reshape(4, 4)
    read = pixels(encode(Image.fromarray(values), "TIFF"))
    assert abs(read[..., 0].astype(float) - values / white * 255).max() < 0.51


def test_not_finite_pixels_are_refused() -> None:
    with pytest.raises(UnreadableImage, match="finite"):
        read_image(encode(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))


def test_one_bit_image() -> None:
    bits = Image.fromarray(PICTURE[..., 0]).convert("1")
    assert (pixels(encode(bits)) == PICTURE[..., :1]).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    exact = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **exact)
    assert (pixels(data) == [255, 0, 0]).all()


# How a camera stores the upright picture under each EXIF orientation.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    assert (pixels(encode(Image.fromarray(stored), exif=exif)) == upright).all()


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_meaningless_orientation_is_passed_over(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (pixels(encode(Image.fromarray(PICTURE), exif=exif)) == PICTURE).all()


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encode(Image.fromarray(PICTURE), exif=b"Exif\x00\x00II*\x00garbage that is no directory")
    assert (pixels(data) == PICTURE).all()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
WHOLE_JPEG, WHOLE_PNG = encode(NOISE, "JPEG"), encode(NOISE)
HUGE_HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
BOMB = b"\x89PNG\r\n\x1a\n" + HUGE_HEADER + chunk(b"IEND", b"")
BAD = {
    "zero bytes": b"",
    "text": b"this is not a picture\n",
    "html": b"<html><body>404</body></html>",
    "one byte": b"\xff",
    "signature only": WHOLE_PNG[:8],
    "half a jpeg": WHOLE_JPEG[: len(WHOLE_JPEG) // 2],
    "half a png": WHOLE_PNG[: len(WHOLE_PNG) // 2],
    "flipped bytes": WHOLE_PNG[:100] + bytes(255 - b for b in WHOLE_PNG[100:400]) + WHOLE_PNG[400:],
    "bomb": BOMB,
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_with_a_reason(name: str) -> None:
    with pytest.raises(UnreadableImage) as caught:
        read_image(BAD[name])
    assert str(caught.value) and "\n" not in str(caught.value)


def test_bomb_is_named_as_too_large() -> None:
    with pytest.raises(UnreadableImage, match="too large"):
        read_image(BOMB)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.binary(min_size=1, max_size=4), st.sampled_from([WHOLE_PNG, WHOLE_JPEG]))
def test_damage_anywhere_is_an_image_or_a_reason(where: float, junk: bytes, whole: bytes) -> None:
    place = int(where * len(whole))
    damaged = whole[:place] + junk + whole[place + len(junk) :]
    try:
        assert read_image(damaged).mode == "RGB"
    except UnreadableImage as error:
        assert str(error)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 48))
def test_crop_has_the_size(width: int, height: int, size: int) -> None:
    assert centre_crop(Image.new("RGB", (width, height)), size).size == (size, size)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30000), (30000, 1), (3, 4096)])
def test_tiny_and_very_long_images(shape: tuple[int, int]) -> None:
    cropped = centre_crop(Image.new("RGB", shape, (10, 200, 30)), 64)
    assert cropped.size == (64, 64) and (np.asarray(cropped) == [10, 200, 30]).all()


def test_crop_follows_the_steps_of_adm() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (203, 330, 3), np.uint8))
    halved = image.resize((165, 101), Image.Resampling.BOX).resize((82, 50), Image.Resampling.BOX)
    scaled = np.asarray(halved.resize((round(82 * 32 / 50), 32), Image.Resampling.BICUBIC))
    left = (scaled.shape[1] - 32) // 2
    assert (np.asarray(centre_crop(image, 32)) == scaled[:, left : left + 32]).all()


def test_crop_leaves_an_image_of_the_right_size_alone() -> None:
    image = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
    assert (np.asarray(centre_crop(Image.fromarray(image), 32)) == image).all()


# --- pixels of other people's files ---


QUARTERS = np.zeros((48, 96, 3), np.uint8)  # four corners that tell how a picture is turned
QUARTERS[:24, :48], QUARTERS[:24, 48:], QUARTERS[24:, :48] = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def turned(kind: str, orientation: int, late: bool = False) -> bytes:
    """A picture whose file says how it is to be turned; `late` says so behind the pixels of a PNG."""
    image, exif, buffer = Image.fromarray(QUARTERS), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    if not late:
        image.save(buffer, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
        return buffer.getvalue()
    image.save(buffer, kind)
    data, body = buffer.getvalue(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return data[:-12] + chunk + data[-12:]


@pytest.mark.parametrize(
    ("kind", "late"), [("JPEG", False), ("PNG", False), ("PNG", True), ("TIFF", False), ("WEBP", False)]
)
@pytest.mark.parametrize("orientation", range(10))
def test_headers_and_pixels_agree_on_how_to_turn(kind: str, late: bool, orientation: int) -> None:
    data = turned(kind, orientation, late)
    image = read_image(data)
    assert read_size(data) == image.size == ((48, 96) if 5 <= orientation <= 8 else (96, 48))
    upright = Image.fromarray(QUARTERS)
    expected = np.asarray(upright.transpose(TURNS[orientation]) if orientation in TURNS else upright)
    assert np.abs(np.asarray(image).astype(int) - expected).mean() < 12  # JPEG and WebP are not exact


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_is_no_number_turns_nothing(kind: str) -> None:
    entry = struct.pack(">HHI4sI", 0x0112, 2, 2, b"6\0\0\0", 0)  # as text
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry
    data = encode(Image.fromarray(QUARTERS), kind, exif=exif)
    assert read_size(data) == read_image(data).size == (96, 48)


def grey_png(depth: int, levels: list[int], clear: int) -> bytes:
    """A PNG of one row of grey levels in the file's own depth, one of which is transparent."""
    bits = "".join(f"{level:0{depth}b}" for level in levels)
    row = b"\0" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = len(levels).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([depth, 0, 0, 0, 0])
    chunks = {b"IHDR": header, b"tRNS": clear.to_bytes(2, "big"), b"IDAT": zlib.compress(row), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in chunks.items())


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_of_any_depth_is_white(depth: int) -> None:
    most = 2**depth - 1
    levels = [0, most // 3, most]
    for clear in set(levels):
        row = np.asarray(read_image(grey_png(depth, levels, clear)))[0, :, 0].tolist()
        expected = [255 if level == clear else round(level / most * 255) for level in levels]
        assert row == expected


def test_big_endian_tiffs_of_16_bits() -> None:
    values = np.array([[0, 100, 30000, 65535]], ">u2")
    buffer = io.BytesIO()
    Image.frombytes("I;16B", (4, 1), values.tobytes()).save(buffer, "TIFF")
    assert np.asarray(read_image(buffer.getvalue()))[0, :, 0].tolist() == [0, 0, 117, 255]
    dark = io.BytesIO()
    Image.frombytes("I;16B", (2, 1), np.array([[0, 200]], ">u2").tobytes()).save(dark, "TIFF")
    assert np.asarray(read_image(dark.getvalue()))[0, :, 0].tolist() == [0, 1]  # white is 65535 all the same
