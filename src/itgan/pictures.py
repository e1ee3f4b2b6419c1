"""From picture files, or arrays of any layout, to uint8 arrays n c h w.

One rule for every file: EXIF orientation is applied, transparency is composited on white, 16-bit
grey is scaled to 8 bits, and a set has one channel if every picture in it is grey and three
otherwise. With a declared size a picture is cropped to its central square and resampled (Lanczos);
without one, all pictures must share a size.
"""

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from itgan import progress
from itgan.errors import InputError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # no decoder here starts a program
MOST_PIXELS = 2**25  # in one picture file: decoding takes up to 30 bytes for each
FREE_PIXELS = 2**22  # beyond, no more than 100 for each byte of the file


def to_grey_or_rgb(image: Image.Image) -> Image.Image:
    """Any picture as mode L or RGB with 8 bits per channel.

    Raises:
        ValueError: values beyond 16 bits, or floats outside [0, 1].
    """
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.float64) / (1 if image.mode == "F" else 65535)
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError("its pixels are not in 0...65535 (integers) or 0...1 (floats)")
        return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    grey = image.mode in ("L", "LA", "La")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer).convert("RGB")
    else:
        flat = image.convert("RGB")
    if image.mode in ("P", "PA"):  # a palette may hold greys alone
        channels = np.asarray(flat)
        grey = bool((channels == channels[..., :1]).all())
    return flat.getchannel(0) if grey else flat


def fit(image: Image.Image, size: int) -> Image.Image:
    """The central square of a picture, resampled to ``size`` by ``size``."""
    if image.size == (size, size):
        return image
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side))  # resize(box=) would look outside it
    return square.resize((size, size), Image.Resampling.LANCZOS)


def resize_all(images: UInt8[np.ndarray, "n c h w"], size: int) -> UInt8[np.ndarray, "n c s s"]:
    """`fit` for images that are arrays already."""
    if images.shape[2:] == (size, size):
        return images
    planes = [
        np.asarray(fit(Image.fromarray(p), size)) for p in images.reshape(-1, *images.shape[2:])
    ]
    return np.stack(planes).reshape(*images.shape[:2], size, size)


def decode(
    sources: Iterable[tuple[str, bytes | Path]], total: int, image_size: int | None
) -> UInt8[np.ndarray, "n c h w"]:
    """Decode pictures, given as (what to call it, bytes or path), into one array.

    Raises:
        InputError: a picture cannot be decoded, or sizes differ and none was declared.
    """
    pictures: list[np.ndarray] = []  # h w, or h w 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # remarks on odd but readable files
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for _, (name, source) in zip(
            progress.track(range(total), "decoding"), sources, strict=True
        ):
            try:
                stream = io.BytesIO(source) if isinstance(source, bytes) else source
                with Image.open(stream, formats=FORMATS) as file:
                    _check_size(file.width * file.height, source)
                    image = to_grey_or_rgb(file)
                    picture = np.asarray(fit(image, image_size) if image_size else image)
            except MemoryError:
                raise
            except Exception as error:  # decoders of damaged files raise nearly anything
                reason = str(error).partition("\n")[0]
                raise InputError(
                    f"{name} cannot be read as an image ({reason}); replace or remove it"
                ) from error
            if pictures and picture.shape[:2] != pictures[0].shape[:2]:
                (h, w), (h0, w0) = picture.shape[:2], pictures[0].shape[:2]
                raise InputError(
                    f"{name} is {w}x{h} and images before it are {w0}x{h0}; "
                    "pass image_size, or resize them"
                )
            pictures.append(picture)
    if all(picture.ndim == 2 for picture in pictures):
        return np.stack(pictures)[:, None]
    out = np.empty((len(pictures), *pictures[0].shape[:2], 3), dtype=np.uint8)
    for row, picture in zip(out, pictures, strict=True):
        row[...] = picture if picture.ndim == 3 else picture[..., None]
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))


def _check_size(pixels: int, source: bytes | Path) -> None:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if pixels > MOST_PIXELS or (pixels > FREE_PIXELS and pixels > 100 * size):
        raise ValueError(f"{pixels:,} pixels in {size:,} bytes, too many to decode")


def channels_first(what: str, images: np.ndarray) -> Shaped[np.ndarray, "n c h w"]:
    """Images given as n h w, n h w c or n c h w, with 1 or 3 channels.

    Raises:
        InputError: another shape.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not {images.shape[3], images.shape[1]} & {1, 3}:
        raise InputError(
            f"{what} must have shape n h w, n h w c or n c h w with 1 or 3 channels, "
            f"found {images.shape}"
        )
    return images.transpose(0, 3, 1, 2) if images.shape[3] in (1, 3) else images


def as_pixels(what: str, images: np.ndarray) -> UInt8[np.ndarray, "n c h w"]:
    """Images as n h w, n h w c or n c h w; integers in 0...255 or floats in [0, 1].

    Raises:
        InputError: another shape or type, NaN, or values outside the range.
    """
    images = channels_first(what, images)
    if images.dtype != np.uint8:
        top = {"f": 1, "i": 255, "u": 255}.get(images.dtype.kind)
        if top is None:
            raise InputError(f"{what} must hold uint8 pixels, found {images.dtype}")
        if np.isnan(images).any():
            raise InputError(f"{what} holds NaN pixels; replace them")
        if images.size and not (images.min() >= 0 and images.max() <= top):
            raise InputError(
                f"{what} has values in [{images.min():g}, {images.max():g}]; "
                f"{images.dtype} pixels must lie in [0, {top}], so rescale them"
            )
        images = np.rint(images * (255 // top)).astype(np.uint8)
    return np.ascontiguousarray(images)


def to_uint8(images: Float[Tensor, "*batch h w"]) -> UInt8[Tensor, "*batch h w"]:
    """Pixels in [-1, 1] as integers, rounded to the nearest."""
    return ((images + 1) * 127.5).round_().clamp_(0, 255).byte()


def to_png(pixels: UInt8[Tensor, "c h w"]) -> bytes:
    """One picture as a PNG file, which loses nothing.

    Raises:
        InputError: neither 1 nor 3 channels.
    """
    if len(pixels) not in (1, 3):
        raise InputError(f"a PNG has 1 or 3 channels, not {len(pixels)}; write npz instead")
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).save(file, "png")
    return file.getvalue()


def to_jpeg(
    pixels: UInt8[Tensor, "c h w"],
    quality: int,
    part: Literal["whole", "tables", "stream"] = "whole",
) -> bytes:
    """One picture as a JPEG file (colour at half resolution), or a part of it.

    ``tables`` holds the quantisation and Huffman tables that a quality has for every picture,
    ``stream`` the picture without them.
    """
    file = io.BytesIO()
    kind = ("whole", "tables", "stream").index(part)
    picture = Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())
    picture.save(file, "jpeg", quality=quality, streamtype=kind)
    return file.getvalue()


def grid(images: UInt8[Tensor, "rows columns c h w"], scale: int = 1) -> Image.Image:
    """Equal pictures side by side, each pixel ``scale`` wide."""
    pixels = images.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # rows*h columns*w c
    picture = Image.fromarray(pixels.squeeze(2).numpy())
    return picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )
