"""The histogram of document lengths, drawn with Pillow: matplotlib takes a second of CPU for one picture.

D documents, B bins. Everything is drawn at twice its size and scaled down, which smooths the edges.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from megadeberta.storage import write_file

HISTOGRAM = "lengths.png"
_SCALE, _WIDTH, _HEIGHT = 2, 840, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 20, 44, 60
_BLUE, _ORANGE, _BLACK, _GREY = "#1f77b4", "#ff7f0e", "#000000", "#d8d8d8"


def plot_lengths(folder: Path, lengths: np.ndarray) -> None:
    """Write ``lengths.png``: how many documents have how many tokens, in logarithmic bins.

    Args:
        lengths: ``[D]`` tokens of each document, at least one.

    Raises:
        StorageError: the file system refused.
    """
    edges = np.unique(np.geomspace(1, max(int(lengths.max()), 2) + 1, 50).round())  # [B + 1]
    counts, _ = np.histogram(lengths, bins=edges)  # [B]
    canvas = _Canvas(largest_x=float(edges[-1]), largest_y=int(counts.max()))
    canvas.grid()
    for count, start, stop in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        canvas.bar(start, stop, count)
    median = float(np.median(lengths))
    canvas.mark(median, f"median {median:,.0f}")
    canvas.frame(f"{len(lengths):,} documents", x_label="tokens per document", y_label="documents")
    image = io.BytesIO()
    canvas.finished().save(image, format="png")
    write_file(folder / HISTOGRAM, image.getvalue())


def round_ticks(largest: int) -> list[int]:
    """Round numbers from 0 to ``largest``, three to six of them."""
    step = 10 ** max(0, len(str(largest)) - 1)
    for divisor in (5, 2):
        if largest // step < 3 and step % divisor == 0:
            step //= divisor
    return list(range(0, largest + 1, step))


class _Canvas:
    """A logarithmic axis of lengths from 1, and a linear one of counts from 0."""

    def __init__(self, *, largest_x: float, largest_y: int) -> None:
        self._largest_x, self._largest_y = largest_x, max(largest_y, 1)
        self._image = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._font = ImageFont.load_default(size=14 * _SCALE)

    def bar(self, start: float, stop: float, count: int) -> None:
        if count:
            self._draw.rectangle((self._x(start), self._y(count), self._x(stop), self._y(0)), _BLUE, "white")

    def mark(self, length: float, label: str) -> None:
        x = self._x(max(length, 1.0))
        self._draw.line((x, self._y(0), x, _TOP * _SCALE), _ORANGE, 2 * _SCALE)
        aside, anchor = (-6, "rm") if x > 0.75 * _WIDTH * _SCALE else (6, "lm")
        self._text(label, (x + aside * _SCALE, (_TOP + 14) * _SCALE), anchor)

    def grid(self) -> None:
        for count in round_ticks(self._largest_y):
            y = self._y(count)
            self._draw.line((_LEFT * _SCALE, y, (_WIDTH - _RIGHT) * _SCALE, y), _GREY, _SCALE)
            self._text(f"{count:,}", ((_LEFT - 8) * _SCALE, y), "rm")
        length = 1
        while length <= self._largest_x:
            x = self._x(length)
            self._draw.line((x, self._y(0), x, _TOP * _SCALE), _GREY, _SCALE)
            self._text(f"{length:,}", (x, (_HEIGHT - _BOTTOM + 14) * _SCALE), "mm")
            length *= 10

    def frame(self, title: str, *, x_label: str, y_label: str) -> None:
        corners = (_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM)
        self._draw.rectangle([corner * _SCALE for corner in corners], outline=_BLACK, width=_SCALE)
        middle = (_LEFT + _WIDTH - _RIGHT) / 2 * _SCALE
        self._text(title, (middle, 0.5 * _TOP * _SCALE), "mm")
        self._text(x_label, (middle, (_HEIGHT - 18) * _SCALE), "mm")
        self._text(y_label, (12 * _SCALE, 0.5 * _TOP * _SCALE), "lm")

    def finished(self) -> Image.Image:
        return self._image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)

    def _text(self, text: str, place: tuple[float, float], anchor: str) -> None:
        self._draw.text(place, text, _BLACK, self._font, anchor=anchor)

    def _x(self, length: float) -> float:
        width = (_WIDTH - _LEFT - _RIGHT) * _SCALE
        return _LEFT * _SCALE + width * float(np.log(length) / np.log(self._largest_x))

    def _y(self, count: int) -> float:
        height = (_HEIGHT - _TOP - _BOTTOM) * _SCALE
        return (_HEIGHT - _BOTTOM) * _SCALE - 0.95 * height * count / self._largest_y
