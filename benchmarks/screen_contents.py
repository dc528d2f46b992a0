"""What screens show: text, code, tables, charts and controls, drawn bit by bit. See screens.py."""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Random = np.random.Generator

FONTS = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
PROPORTIONAL = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "STIXGeneral")
MONOSPACED = ("DejaVuSansMono", "DejaVuSansMono-Bold")
ALPHABETS = (  # consonants and vowels: Latin three times as often as Greek and Cyrillic
    *(("bcdfghjklmnpqrstvwxz", "aeiouy"),) * 6,
    ("βγδζθκλμνξπρστφχψ", "αεηιουω"),
    ("бвгджзклмнпрстфхцчшщ", "аеиоуыэюя"),
)


class Theme(NamedTuple):
    """Colors and fonts of a screen.

    Attributes:
      paper: the background.
      ink: text.
      faint: lines, and text of less importance.
      accents: further colors that stand out from the background.
      prose: font of text.
      code: font of code.
      size: font size in pixels.
      letters: consonants and vowels of words.
    """

    paper: Color
    ink: Color
    faint: Color
    accents: tuple[Color, ...]
    prose: str
    code: str
    size: int
    letters: tuple[str, str]

    @classmethod
    def drawn(cls, rng: Random) -> "Theme":
        """Draws a dark or light theme."""
        dark = rng.random() < 0.4
        tint = rng.integers(-14, 15, 3)
        paper = np.clip((rng.integers(8, 60) if dark else rng.integers(215, 256)) + tint, 0, 255)
        ink = np.clip((rng.integers(190, 256) if dark else rng.integers(0, 70)) + tint, 0, 255)
        low, high = (110, 256) if dark else (0, 190)
        accents = [rng.permutation(np.array([low, rng.integers(low, high), high - 1])) for _ in range(6)]
        return cls(
            rgb(paper),
            rgb(ink),
            rgb(0.65 * paper + 0.35 * ink),
            tuple(map(rgb, accents)),
            str(rng.choice(PROPORTIONAL)),
            str(rng.choice(MONOSPACED)),
            int(rng.integers(8, 15)),
            ALPHABETS[rng.integers(len(ALPHABETS))],
        )

    def accent(self, rng: Random) -> Color:
        """Draws one of the accents."""
        return self.accents[rng.integers(len(self.accents))]


class Canvas:
    """A picture that is drawn bit by bit.

    Attributes:
      image: the picture.
      draw: its drawing functions.
    """

    def __init__(self, width: int, height: int, paper: Color):
        self.image = Image.new("RGB", (width, height), paper)
        self.draw = ImageDraw.Draw(self.image)


# A function that draws one kind of content on a canvas. It yields after every word, bar or control.
Content = Callable[[Canvas, Random, Theme], Iterator[None]]


def text(canvas: Canvas, rng: Random, theme: Theme) -> Iterator[None]:
    """A page of prose: headings, paragraphs, lists and links, in one column or two."""
    width, height = canvas.image.size
    margin, columns = int(rng.integers(2, 9)), 1 + (rng.random() < 0.2)
    line = round(theme.size * rng.uniform(1.15, 1.5))
    body = font(theme.prose, theme.size)
    for column in range(columns):
        left = margin + column * (width // columns)
        right = left + width // columns - 2 * margin
        y = margin
        while y < height:
            kind = rng.choice(["paragraph", "heading", "list"], p=[0.6, 0.2, 0.2])
            drawn = font("DejaVuSans-Bold", theme.size + 3) if kind == "heading" else body
            color = theme.accent(rng) if kind == "heading" and rng.random() < 0.5 else theme.ink
            x = left
            if kind == "list":
                canvas.draw.ellipse((x, y + line // 3, x + 3, y + line // 3 + 3), fill=theme.accent(rng))
                x += 8
            indent = x
            for _ in range(rng.integers(2, 5) if kind == "heading" else rng.integers(6, 40)):
                shown = word(rng, theme)
                length = drawn.getlength(shown)
                if x + length > right and x > indent:
                    x, y = indent, y + line
                if y >= height:
                    break
                link = kind != "heading" and rng.random() < 0.05
                canvas.draw.text((x, y), shown, theme.accent(rng) if link else color, drawn)
                x += length + drawn.getlength(" ")
                yield
            y += line + int(rng.integers(0, line))


def code(canvas: Canvas, rng: Random, theme: Theme) -> Iterator[None]:
    """Program text: line numbers, indentation, and a color for each kind of token."""
    width, height = canvas.image.size
    drawn = font(theme.code, theme.size)
    advance, line = drawn.getlength("0"), round(theme.size * 1.3)
    number, gutter, depth, y = int(rng.integers(1, 900)), 0.0, 0, 2
    if rng.random() < 0.6:
        gutter = 4 * advance
        canvas.draw.rectangle((0, 0, gutter - 2, height), fill=mixed(theme.paper, theme.faint, 0.15))
    names = [word(rng, theme, plain=True) for _ in range(12)]
    keywords, symbols = names[:3], ["(", ")", "=", "+=", "->", "{", "}", ":", ",", ".", "[i]", "==", "&&"]
    while y < height:
        if gutter:
            canvas.draw.text((0, y), f"{number:3}", theme.faint, drawn)
        number += 1
        x = gutter + 2 + 2 * advance * depth
        comment = rng.random() < 0.12
        for _ in range(0 if rng.random() < 0.1 else rng.integers(2, 9)):
            kind = "comment" if comment else rng.choice(["name", "keyword", "symbol", "number", "string"])
            shown, color = {
                "comment": (word(rng, theme), theme.faint),
                "name": (str(rng.choice(names)), theme.ink),
                "keyword": (str(rng.choice(keywords)), theme.accents[0]),
                "symbol": (str(rng.choice(symbols)), theme.ink),
                "number": (str(rng.integers(0, 10 ** rng.integers(1, 5))), theme.accents[1]),
                "string": (f'"{word(rng, theme)}"', theme.accents[2]),
            }[str(kind)]
            canvas.draw.text((x, y), shown, color, drawn)
            x += advance * (len(shown) + (rng.random() < 0.6))
            yield
            if x > width:
                break
        depth = int(np.clip(depth + rng.choice([-1, 0, 0, 0, 1]), 0, 4))
        y += line


def table(canvas: Canvas, rng: Random, theme: Theme) -> Iterator[None]:
    """A sheet of numbers and names, with a header, grid lines and colored cells."""
    width, height = canvas.image.size
    row = theme.size + int(rng.integers(3, 8))
    drawn = font(theme.prose, theme.size - 1)
    edges = [0]
    while edges[-1] < width:
        edges.append(edges[-1] + int(rng.integers(24, 56)))
    numeric = rng.random(len(edges)) < 0.6
    striped, ruled = rng.random() < 0.4, rng.random() < 0.7
    for i, y in enumerate(range(0, height, row)):
        fill = mixed(theme.paper, theme.accents[0], 0.5) if not i else None
        if i and striped and i % 2:
            fill = mixed(theme.paper, theme.faint, 0.25)
        if fill:
            canvas.draw.rectangle((0, y, width, y + row), fill=fill)
        for left, right, is_number in zip(edges[:-1], edges[1:], numeric, strict=False):
            if i and rng.random() < 0.07:
                lit = mixed(theme.paper, theme.accent(rng), rng.uniform(0.3, 0.9))
                canvas.draw.rectangle((left, y, right, y + row), fill=lit)
            shown = word(rng, theme)
            if i and is_number:
                shown = f"{rng.normal() * 10 ** rng.integers(0, 4):.{rng.integers(0, 3)}f}"
            while drawn.getlength(shown) > right - left - 5 and shown:
                shown = shown[:-1]
            x, anchor = (right - 3, "rm") if i and is_number else (left + 3, "lm")
            canvas.draw.text((x, y + row / 2), shown, theme.ink, drawn, anchor=anchor)
            if ruled:
                canvas.draw.line((right, 0, right, height), theme.faint)
            yield
        if ruled:
            canvas.draw.line((0, y + row, width, y + row), theme.faint)


def chart(canvas: Canvas, rng: Random, theme: Theme) -> Iterator[None]:
    """A chart with a title, axes, ticks and a grid: bars, lines, points or sectors."""
    width, height = canvas.image.size
    draw, small = canvas.draw, font(theme.prose, max(7, theme.size - 2))
    title = " ".join(word(rng, theme) for _ in range(3))
    draw.text((width / 2, 2), title, theme.ink, small, anchor="mt")
    left, top, right, bottom = int(rng.integers(14, 26)), theme.size + 4, width - 4, height - theme.size - 3
    if min(right - left, bottom - top) < 8:
        return
    kind = rng.choice(["bars", "lines", "points", "sectors"], p=[0.35, 0.35, 0.15, 0.15])
    count = int(rng.integers(4, 14))
    if kind == "sectors":
        start, side = rng.uniform(0, 360), min(right - left, bottom - top)
        for share in rng.dirichlet(np.full(min(count, 7), 2.0)):
            end = start + 360 * share
            draw.pieslice(
                (left, top, left + side, top + side), start, end, fill=theme.accent(rng), outline=theme.paper
            )
            start = end
            yield
        return
    for i in range(5):
        y = bottom - i * (bottom - top) / 4
        draw.line((left, y, right, y), theme.faint)
        draw.text((left - 2, y), f"{i * rng.integers(1, 30)}", theme.ink, small, anchor="rm")
    draw.line((left, top, left, bottom), theme.ink)
    draw.line((left, bottom, right, bottom), theme.ink)
    step = (right - left) / count
    for color in rng.permutation(theme.accents)[: 1 if kind == "bars" else rng.integers(1, 4)]:
        values = bottom - (bottom - top) * np.clip(np.cumsum(rng.normal(0, 0.2, count)) + rng.random(), 0, 1)
        previous = None
        for i, y in enumerate(values):
            x = left + step * (i + 0.5)
            if kind == "bars":
                draw.rectangle((x - 0.35 * step, y, x + 0.35 * step, bottom), fill=rgb(color))
                draw.text((x, bottom + 2), word(rng, theme)[:2], theme.ink, small, anchor="mt")
            elif kind == "lines":
                if previous:
                    draw.line((*previous, x, y), rgb(color), width=int(rng.integers(1, 3)))
                previous = x, y
            else:
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=rgb(color))
            yield


def controls(canvas: Canvas, rng: Random, theme: Theme) -> Iterator[None]:
    """A form: buttons, check boxes, sliders, progress bars and text fields, with labels."""
    width, height = canvas.image.size
    draw, drawn = canvas.draw, font(theme.prose, theme.size)
    row, y = theme.size + 8, 3
    while y < height:
        x = 4.0
        while x < width:
            kind = rng.choice(["button", "check", "slider", "bar", "field", "label"])
            shown, color, level = word(rng, theme), theme.accent(rng), rng.random()
            size = drawn.getlength(shown)
            if kind == "button":
                draw.rounded_rectangle((x, y, x + size + 10, y + row - 3), int(rng.integers(0, 6)), color)
                draw.text((x + 5, y + row / 2 - 1), shown, theme.paper, drawn, anchor="lm")
                x += size + 15
            elif kind in ("check", "label"):
                if kind == "check":
                    draw.rectangle((x, y + 3, x + 9, y + 12), outline=theme.ink)
                    if level < 0.6:
                        draw.line((x + 2, y + 7, x + 4, y + 10, x + 8, y + 4), color, width=2)
                    x += 13
                draw.text((x, y + row / 2 - 1), shown, theme.ink, drawn, anchor="lm")
                x += size + 8
            elif kind == "field":
                draw.rectangle((x, y, x + size + 20, y + row - 4), outline=theme.faint)
                draw.text((x + 3, y + row / 2 - 2), shown, theme.ink, drawn, anchor="lm")
                x += size + 26
            else:
                length, middle = float(rng.integers(25, 60)), y + row / 2
                half = 1 if kind == "slider" else 4
                draw.rectangle((x, middle - half, x + length, middle + half), fill=theme.faint)
                draw.rectangle((x, middle - half, x + level * length, middle + half), fill=color)
                if kind == "slider":
                    at = x + level * length
                    draw.ellipse((at - 4, middle - 4, at + 4, middle + 4), fill=theme.ink)
                x += length + 10
            yield
        y += row


def word(rng: Random, theme: Theme, plain: bool = False) -> str:
    """Draws a word of syllables; unless it is plain, it may be a number, or have capitals or a comma."""
    consonants, vowels = theme.letters
    parts = (
        f"{rng.choice(list(consonants))}{rng.choice(list(vowels))}" for _ in range(rng.choice([1, 2, 3, 4]))
    )
    letters = "".join(parts)[: rng.integers(2, 9)]
    if plain:
        return letters
    if rng.random() < 0.08:
        return str(rng.integers(0, 10 ** rng.integers(1, 5)))
    letters = letters.capitalize() if rng.random() < 0.15 else letters
    return letters + str(rng.choice(["", ",", ".", "?", ":"], p=[0.82, 0.08, 0.06, 0.02, 0.02]))


def mixed(one: Color, other: Color, share: float) -> Color:
    """The color that has a share of `other` and the rest of `one`."""
    return rgb((1 - share) * np.asarray(one) + share * np.asarray(other))


@functools.cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib."""
    return ImageFont.truetype(FONTS / f"{name}.ttf", size)


def rgb(values: Any) -> Color:
    """A color of three numbers from 0 to 255."""
    red, green, blue = (int(value) for value in values)
    return red, green, blue
