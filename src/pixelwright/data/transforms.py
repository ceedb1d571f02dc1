"""From the bytes of an image file to a square RGB picture."""

import io
import re
from contextlib import suppress
from functools import cache
from importlib import import_module

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

EXIF_ORIENTATION = 0x0112
TIFF_PHOTOMETRIC = 262  # 0 where the largest value is black, which Pillow heeds at 8 bits alone
_TURN = Image.Transpose  # what brings pictures upright, from EXIF orientation 2 on
_LIST = (_TURN.FLIP_LEFT_RIGHT, _TURN.ROTATE_180, _TURN.FLIP_TOP_BOTTOM, _TURN.TRANSPOSE)
TURNS = dict(enumerate((*_LIST, _TURN.ROTATE_270, _TURN.TRANSVERSE, _TURN.ROTATE_90), start=2))
LATE_EXIF = re.compile(rb"eXIf|Raw profile type exif|XML:com\.adobe\.xmp")  # where a PNG tells how to turn it
LONGEST_ASPECT = 16
FORMAT = "format"  # in the `info` of an image that `read_image` read: its file's, such as JPEG
CONVERTED = "converted"  # in the `info` of an image that `read_image` had to convert: its mode in the file


class UnreadableImage(Exception):
    """An image that cannot be used; its text is the reason in a few words. The loader skips it."""


def read_image(data: bytes) -> Image.Image:
    """Decode an image file to RGB, upright.

    EXIF rotation is applied, transparency is laid on white, 16-bit grey is scaled to 8 bits, CMYK and
    palettes are converted, and an animation gives its first frame. Colour profiles are ignored, as is usual
    in training.

    Raises UnreadableImage, with the reason, for anything that is not a whole image.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        with _open(data) as image:
            image.load()
            turn, rgb = TURNS.get(_orientation(image)), _to_rgb(image, data)
            upright = rgb if turn is None else rgb.transpose(turn)
            upright.info[FORMAT] = image.format
            if image.mode != "RGB":
                upright.info[CONVERTED] = image.mode
            return upright
    except UnidentifiedImageError:
        raise UnreadableImage("not an image in a known format") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"too large: {error}") from None
    except Exception as error:  # broken files raise anything from OSError to struct.error inside the decoders
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


@cache
def _register_heif() -> None:
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()


def _open(data: bytes) -> Image.Image:
    """The image in a file, HEIC too where pillow-heif is installed (the extra `heif`)."""
    _register_heif()
    return Image.open(io.BytesIO(data))


def read_size(data: bytes) -> tuple[int, int]:
    """(width, height) of an image file as it is shown, from its header alone. Raises UnreadableImage if there
    is no such header."""
    try:
        with _open(data) as image:
            if image.format == "TIFF":  # which Pillow itself turns upright, the size at once
                return image.size
            if image.format == "PNG" and not LATE_EXIF.search(data):  # or it would be decoded to look behind
                return image.size
            return (image.height, image.width) if _orientation(image) >= 5 else image.size
    except Exception as error:  # as in `read_image`
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _orientation(image: Image.Image) -> int:
    """How the picture is to be turned, 1 to 8; 1 where it does not say, or says what has no meaning."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing of the pixels, which are whole
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    clear = image.info.get("transparency")
    if image.mode == "RGB" and clear is None:
        return image.copy()
    if image.format == "PNG" and isinstance(clear, int) and image.mode != "P":
        return _grey_on_white(image, clear, depth=data[24])
    if image.format == "PNG" and isinstance(clear, tuple) and data[24] == 16:
        image.info["transparency"] = tuple(level >> 8 for level in clear)  # as Pillow cuts the pixels
    if image.mode.startswith("I") or image.mode == "F":
        grey = _to_bytes(np.asarray(image))
        inverted = isinstance(image, TiffImageFile) and image.tag_v2.get(TIFF_PHOTOMETRIC) == 0
        return Image.fromarray(255 - grey if inverted else grey).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or clear is not None:
        front = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", front.size, "white"), front).convert("RGB")
    return image.convert("RGB")


def _grey_on_white(image: Image.Image, clear: int, depth: int) -> Image.Image:
    """A grey PNG in which the level `clear`, in the file's own `depth` in bits, is transparent."""
    values = np.asarray(image)  # [H, W]: of 8 bits, scaled to that, or of 16
    grey = np.asarray(image.convert("L")) if values.dtype.itemsize == 1 else _to_bytes(values)
    at = clear if values.dtype == bool or depth >= 8 else clear * (255 // (2**depth - 1))
    return Image.fromarray(np.where(values == at, np.uint8(255), grey)).convert("RGB")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Grey values of 16-bit, 32-bit or floating type, [H, W], scaled to uint8.

    The largest value of the type is white. Where the type does not say (32-bit whole numbers and floats),
    white is the smallest of 1 (floats only), 255, 65535 and 2^32 - 1 that no value exceeds.
    """
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError("pixels that are not finite")
    short = values.dtype.kind == "u" and values.dtype.itemsize == 2
    scales = [65535.0] if short else [255.0, 65535.0, 2.0**32 - 1]
    scales = [1.0, *scales] if values.dtype.kind == "f" else scales
    white = next((scale for scale in scales if wide.max() <= scale), float(wide.max()))
    return np.rint(np.clip(wide / white, 0, 1) * 255).astype(np.uint8)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of `image` at `size` x `size` pixels, by the rule of ADM (arXiv 2105.05233).

    Halve with a box filter while the shorter side is at least 2 * size, resize bicubically so that the
    shorter side is `size`, cut out the centre. The filters and the rounding are part of the rule: the
    reference statistics of ImageNet are of images cut this way.
    """
    return cover(image, size, size)


def cover(image: Image.Image, rows: int, columns: int) -> Image.Image:
    """The centre of `image`, scaled to just cover rows x columns pixels; for squares the rule of ADM."""
    longest = LONGEST_ASPECT * min(image.size)
    if max(image.size) > longest:  # the far ends of a strip of 1 x 30000, enlarged, would fill the memory
        width, height = min(image.width, longest), min(image.height, longest)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    while image.width >= 2 * columns and image.height >= 2 * rows:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(columns / image.width, rows / image.height)
    if scale != 1:
        shape = max(columns, round(image.width * scale)), max(rows, round(image.height * scale))
        image = image.resize(shape, Image.Resampling.BICUBIC)
    left, top = (image.width - columns) // 2, (image.height - rows) // 2
    box = (left, top, left + columns, top + rows)
    return image.crop(box) if image.size != (columns, rows) else image
