"""The parts that self-contained HTML pages share: head and style, charts as SVG, pictures, numbers."""

import base64
import html
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

NONE = "&ndash;"  # in place of a missing number
DOTTED = 40  # a curve of at most this many points shows a dot at each
LOG_FROM = 30  # see `chart`
_WIDTH, _HEIGHT = 460, 260  # of a chart, in pixels
_LEFT, _RIGHT, _BOTTOM, _TOP = 52, 12, 40, 10  # margins of a chart's axes
# Six colors of Wong's palette, which color-blind readers can tell apart, then gray and olive. On a dark
# background they are lighter.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a800")
_DARK_COLORS = ("#3f9fdc", "#f0803c", "#2dbd94", "#dd97bd", "#e9ad2c", "#8bcbf2", "#a0a0a0", "#cfc13a")
_STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1c;--soft:#6a6a6a;--line:#d8d8d8;--ground:#fff;--best:#e3f1e3;LIGHT}
@media(prefers-color-scheme:dark){:root{--ink:#e4e4e4;--soft:#9a9a9a;--line:#3a3a3a;--ground:#161616;
--best:#1f3a24;DARK}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--ground);margin:2em auto;
max-width:1500px;padding:0 1.5em}
h1{font-size:1.5em}h2{font-size:1.2em;margin:2.2em 0 .6em;border-top:1px solid var(--line);padding-top:1em}
h3{font-size:1em;margin:1.6em 0 .4em}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3em .9em;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child,td:first-child{text-align:left}td.best{background:var(--best);font-weight:600}
small,.soft{color:var(--soft);font-weight:400}td small{display:block}
.charts{display:flex;flex-wrap:wrap;gap:2em}figure{margin:1em 0}.key{white-space:nowrap}
svg{overflow:visible}svg text{fill:var(--ink);font:12px system-ui,sans-serif}
.samples td,.samples th{border:0;padding:.25em;text-align:center}.samples td:first-child{padding-right:.8em}
img{image-rendering:pixelated;display:block}pre{white-space:pre-wrap;font-size:12px}
"""


class Series(NamedTuple):
    """A curve of a chart.

    Attributes:
      name: name in the legend.
      points: (x, y); a point that is not finite interrupts the curve.
      color: CSS color; '' takes the color of the curve's position, see `color`.
      dashed: whether the line is dashed and has no dots.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: str = ""
    dashed: bool = False


def head(title: str, style: str = "") -> str:
    """The beginning of a page, up to its body; `style` is further CSS."""
    colors = ("".join(f"--c{i}:{one};" for i, one in enumerate(colors)) for colors in (_COLORS, _DARK_COLORS))
    shared = _STYLE.replace("LIGHT", next(colors)).replace("DARK", next(colors))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{text(title)}</title><style>{shared}{style}</style>"
    )


def color(position: int) -> str:
    """The CSS color of a position in the palette, which repeats."""
    return f"var(--c{position % len(_COLORS)})"


def chart(
    series: Sequence[Series],
    across: str,
    up: str,
    lines: bool = True,
    log: bool = False,
    along: Sequence[float] = (),
) -> str:
    """A chart as SVG with a legend; '' if no point is finite.

    Args:
      series: the curves.
      across: label of the x axis.
      up: title, which names the y axis.
      lines: whether to join the points.
      log: whether the y axis is logarithmic if the values span more than a factor of LOG_FROM; points at or
        below 0 then count as not finite.
      along: x values that the x axis must include.
    """
    if log:
        positive = [y for one in series for _, y in one.points if 0 < y < math.inf]
        log = bool(positive) and max(positive) > LOG_FROM * min(positive)
    curves = [[(x, _y(y, log)) for x, y in one.points] for one in series]
    points = [point for curve in curves for point in curve if _finite(point)]
    if not points:
        return ""
    columns, rows = zip(*points, strict=True)
    axes = _Axes(_scale([*columns, *along]), (_log_scale if log else _scale)(rows), log)
    drawn = [*axes.drawn(across)]
    legend = []
    for i, (one, curve) in enumerate(zip(series, curves, strict=True)):
        ink = one.color or color(i)
        drawn += _curve(axes, curve, ink, lines, one.dashed)
        key = "- -" if one.dashed else "●"
        absent = "" if any(map(_finite, curve)) else " (infinite)"
        legend.append(
            f"<span class=key><span style='color:{ink}'>{key}</span> {text(one.name)}{absent}</span>"
        )
    return (
        f"<figure><figcaption>{text(up)}</figcaption><svg width={_WIDTH} height={_HEIGHT}"
        f" viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img xmlns='http://www.w3.org/2000/svg'>{''.join(drawn)}</svg>"
        f"<div class=soft style='max-width:{_WIDTH}px'>{' &ensp; '.join(legend)}</div></figure>"
    )


def picture(frame: np.ndarray, width: int = 0, kind: str = "png", **options: Any) -> str:
    """An <img> of a picture, `width` pixels wide on the page.

    Args:
      frame: the picture, (H, W, 3) uint8.
      width: width on the page, in CSS pixels; 0: the picture's own width.
      kind: format, 'png' or 'webp'.
      **options: options of Pillow's encoder.
    """
    file = io.BytesIO()
    options = options or {"optimize": True}
    Image.fromarray(np.ascontiguousarray(frame)).save(file, kind.upper(), **options)
    return embedded(kind, file.getvalue(), width or frame.shape[1])


def embedded(kind: str, data: bytes, width: int) -> str:
    """An <img> of an encoded picture, `width` pixels wide on the page."""
    return f"<img width={width} alt='' src='data:image/{kind};base64,{base64.b64encode(data).decode()}'>"


def number(value: float, digits: int) -> str:
    """A number with `digits` decimal places, as HTML; a dash for NaN."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return NONE if math.isnan(value) else f"{value:.{digits}f}"


def text(value: Any) -> str:
    """The text of a value, escaped for HTML."""
    return html.escape(str(value))


class _Axes(NamedTuple):
    """The axes of a chart: limits and ticks, which are logarithms to base 10 for y if `log`."""

    x: tuple[float, float, list[float]]
    y: tuple[float, float, list[float]]
    log: bool

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The pixel (x, y) of a point."""
        (x_low, x_high, _), (y_low, y_high, _) = self.x, self.y
        column = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        row = _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _BOTTOM - _TOP)
        return round(column, 1), round(row, 1)

    def drawn(self, across: str) -> Iterator[str]:
        for tick in self.y[2]:
            _, y = self.place(self.x[0], tick)
            label = f"{10**tick if self.log else tick:.6g}"
            yield f"<line x1={_LEFT} x2={_WIDTH - _RIGHT} y1={y} y2={y} stroke='var(--line)'/>"
            yield f"<text x={_LEFT - 6} y={y + 4} text-anchor=end>{label}</text>"
        for tick in self.x[2]:
            x, _ = self.place(tick, self.y[0])
            yield f"<text x={x} y={_HEIGHT - _BOTTOM + 16} text-anchor=middle>{tick:g}</text>"
        middle = (_LEFT + _WIDTH) / 2
        yield f"<text x={middle} y={_HEIGHT - 6} text-anchor=middle>{text(across)}</text>"


def _curve(
    axes: _Axes, points: Sequence[tuple[float, float]], ink: str, lines: bool, dashed: bool
) -> Iterator[str]:
    """The line of a curve, interrupted at points that are not finite, and its dots."""
    parts: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if _finite(point):
            parts[-1].append(axes.place(*point))
        elif parts[-1]:
            parts.append([])
    style = "stroke-width=1.5 stroke-dasharray='5 4'" if dashed else "stroke-width=2"
    for part in parts:
        if lines and len(part) > 1:
            path = " ".join(f"{x},{y}" for x, y in part)
            yield f"<polyline points='{path}' fill=none stroke='{ink}' {style} />"
    dots = [place for part in parts for place in part]
    # A curve of one point, or an isolated point, would otherwise be invisible.
    alone = [part[0] for part in parts if len(part) == 1]
    for x, y in dots if not lines or (len(dots) <= DOTTED and not dashed) else alone:
        yield f"<circle cx={x} cy={y} r=3 fill='{ink}'/>"


def _finite(point: tuple[float, float]) -> bool:
    return all(map(math.isfinite, point))


def _y(value: float, log: bool) -> float:
    if not log:
        return value
    return math.log10(value) if 0 < value < math.inf else math.nan


def _scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """The limits of an axis for these values, and its ticks at round numbers."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1, abs(high)):
        margin = abs(low) / 10 or 0.5
        low, high = low - margin, high + margin
    raw = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * unit for unit in (1, 2, 5, 10) if size * unit >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return first * step, last * step, [round(i * step, 10) for i in range(first, last + 1)]


def _log_scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """The limits of a logarithmic axis, and its ticks at 1, 2, 5 or at powers of ten; all logarithms."""
    low, high = min(values), max(values)
    decades = range(math.floor(low), math.ceil(high) + 1)
    fine = [decade + math.log10(unit) for decade in decades for unit in (1, 2, 5)]
    first = max(tick for tick in fine if tick <= low + 1e-9)
    last = min(tick for tick in fine if tick >= high - 1e-9)
    ticks = [tick for tick in fine if first <= tick <= last]
    if len(ticks) > 9:
        step = math.ceil(len(decades) / 6)
        ticks = [float(decades[0] + i * step) for i in range(math.ceil((high - decades[0]) / step) + 1)]
    return ticks[0], ticks[-1], ticks
