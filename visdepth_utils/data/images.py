"""Stored pictures become upright RGB, one at a time, and a bad one says what is wrong with it."""

import base64
import io
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps

from visdepth_utils.common.errors import first_line

_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk|SUkq|TU0A)[A-Za-z0-9+/\s]{60,}=*\s*")
"""A file of PNG, JPEG, GIF, WebP, BMP or TIFF in base64, by its first bytes; no path is like it."""


class BadRow(ValueError):
    """A row that makes no sample; the message says why."""


def upright_rgb(data: bytes) -> Image.Image:
    """Decode the bytes of a picture file as a person sees it, in RGB.

    Turned as its EXIF entry says; transparent parts on white (the page a chart is made for); 16-bit
    grey scaled to 8 bits, where Pillow's own conversion would cut it off; the first frame of an
    animation. Pillow's limit against decompression bombs stays on, its warning counts as an error.
    BadRow: it cannot be decoded, is too large, or has values without a defined brightness.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                image = _eight_bits(image)
            if image.has_transparency_data:
                page = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(page, image.convert("RGBA"))
            if image.mode == "F":
                raise BadRow("its picture has floating-point values: store it with 8 bits")
            return image.convert("RGB")
    except BadRow:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRow(f"its picture is too large ({first_line(error)}): make it smaller") from error
    except Exception as error:  # damaged bytes can raise anything in Pillow's readers
        raise BadRow(f"its picture cannot be decoded ({first_line(error)}): replace it") from error


def picture_bytes(cell: Any, base: Path | None) -> bytes:
    """The picture file that one cell of an image column holds or names.

    A cell is ``{"bytes", "path"}`` as the datasets library stores it, bytes, a path, a data URI, or
    the file in base64. Paths are relative to ``base`` and must not leave it; None allows none.
    BadRow: nothing there, another type, or a path that is missing or outside of the folder.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return cell
    if not isinstance(cell, str) or not cell:
        raise BadRow(f"its picture is {cell!r:.40}: give a picture's bytes or the path of a file")
    if cell.startswith("data:") or _BASE64.fullmatch(cell):
        return _written_out(cell)
    if "://" in cell:
        raise BadRow(f"its picture is the address {cell!r:.80}: download it and give the file")
    if base is None:
        raise BadRow(f"its picture is the path {cell!r:.80}, without bytes: store the picture")
    try:
        file = (base / cell).resolve()
        inside = file.is_relative_to(base.resolve())
    except (OSError, ValueError) as error:
        why = first_line(error)
        raise BadRow(f"its picture {cell!r:.80} is no path ({why}): correct it") from error
    if not inside:
        raise BadRow(f"its picture {cell!r:.80} lies outside of {base}: keep pictures there")
    if not os.path.isfile(file):  # unlike Path's, for a name of any length
        raise BadRow(f"its picture {cell!r:.80} is no file in {base}: correct the path")
    return file.read_bytes()


def _written_out(text: str) -> bytes:
    """The bytes of a data URI, or of base64."""
    head, comma, body = text.partition(",") if text.startswith("data:") else ("base64", ",", text)
    try:
        packed = head.endswith("base64")
        body = "".join(body.split()) if packed else body
        found = base64.b64decode(body, validate=True) if packed else unquote_to_bytes(body)
    except ValueError as error:
        raise BadRow(f"its picture {text!r:.40} is no base64 ({error}): encode it again") from error
    if not comma or not found:
        raise BadRow(f"its picture {text!r:.40} holds no data after a comma: encode it again")
    return found


def picture_cells(row: dict[str, Any], columns: Sequence[str]) -> list[Any]:
    """The cells of a row that hold pictures, in order; a list is several pictures."""
    found = []
    for column in columns:
        cell = row.get(column)
        for part in cell if isinstance(cell, list) else [cell]:
            empty = isinstance(part, dict) and not any(part.get(k) for k in ("bytes", "path"))
            if part is not None and not empty:
                found.append(part)
    return found


class Pictures(Sequence[Image.Image]):
    """The pictures of one row: decoded each time they are asked for, and not kept."""

    def __init__(self, rows: Any, index: int, columns: Sequence[str], base: Path | None) -> None:
        """Refer to ``rows[index]``, read again at each access; ``base`` as in ``picture_bytes``."""
        self._rows, self._index, self._columns, self._base = rows, index, tuple(columns), base
        self._count = len(self._cells())

    def __len__(self) -> int:
        """Number of pictures; nothing is decoded."""
        return self._count

    def __getitem__(self, k: Any) -> Any:
        """Decode one picture, or a tuple for a slice; BadRow if that fails."""
        found = self._cells()[k]
        if isinstance(k, slice):
            return tuple(upright_rgb(picture_bytes(cell, self._base)) for cell in found)
        return upright_rgb(picture_bytes(found, self._base))

    def _cells(self) -> list[Any]:
        return picture_cells(self._rows[self._index], self._columns)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (some Pillow versions open it with 32 bits) scaled to 8 bits."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadRow("its picture has 32-bit values: store it with 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
