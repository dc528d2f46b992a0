"""The page that shows all lessons: one HTML file, and docs/field-notes.md with its figures."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.field_notes.lesson import Lesson, Outcome

INTRODUCTION = (
    "Linum's field notes have eight lessons from four months with a VAE for images and videos. Each is"
    " repeated here as a small experiment. A verdict follows from its numbers by a rule that was fixed"
    " beforehand: the mean difference of runs with equal seeds, with a 95% interval, lies on the expected"
    " side of 0 (shown), on the other (contradicted), or around it (not shown at this scale)."
)


def picture(outcome: Outcome) -> bytes:
    """The figure of a lesson as PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(9, 4), layout="constrained")
    outcome.draw(figure)
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    pyplot.close(figure)
    return content.getvalue()


def markdown(
    lessons: Sequence[tuple[Lesson, Outcome, float]],
    circumstances: Mapping[str, str],
    images: str,
    order: Sequence[str],
    earlier: str = "",
) -> str:
    """The lessons as Markdown.

    Args:
      lessons: each lesson with its outcome and the seconds that it took.
      circumstances: what the numbers depend on, such as the machine, by name.
      images: folder of the figures, relative to the Markdown file.
      order: the titles of all lessons.
      earlier: an earlier result, whose other lessons are kept.
    """
    found = _sections(earlier)
    for lesson, outcome, seconds in lessons:
        row = f"| [{lesson.title}](#{anchor(lesson.title)}) | {outcome.verdict} | {seconds / 60:.0f} |"
        found[lesson.title] = row, _section(lesson, outcome, circumstances, images)
    rows, sections = zip(*(found[title] for title in order if title in found), strict=True)
    minutes = sum(int(row.rsplit("|", 2)[1]) for row in rows)
    table = ["| Lesson | Verdict | Minutes |", "|---|---|---|", *rows, f"| all | | {minutes} |\n"]
    return "\n".join(["# The field notes, repeated\n", INTRODUCTION + "\n", *table, *sections])


def _section(lesson: Lesson, outcome: Outcome, circumstances: Mapping[str, str], images: str) -> str:
    table = [outcome.header, ["---"] * len(outcome.header), *outcome.rows]
    parts = [
        f"## {lesson.title}\n",
        f"*The notes:* {lesson.claim}\n",
        f"*Here:* {lesson.setup}\n",
        f"![{lesson.title}]({images}/{lesson.name}.png)\n",
        "\n".join(f"| {' | '.join(row)} |" for row in table) + "\n",
        f"**Verdict: {outcome.verdict}.**\n",
        "\n".join(f"- {difference.sentence()}" for difference in outcome.differences) + "\n",
        *(f"{remark}\n" for remark in outcome.remarks),
        "; ".join(f"{name}: {value}" for name, value in circumstances.items()) + "\n",
    ]
    return "\n".join(parts)


def _sections(text: str) -> dict[str, tuple[str, str]]:
    """The row of the table and the section of each lesson in a Markdown file, by title."""
    head, *sections = text.split("\n## ")
    rows = {row[3 : row.index("](#")]: row for row in head.splitlines() if row.startswith("| [")}
    by_title = {section.partition("\n")[0]: f"## {section.rstrip()}\n" for section in sections}
    return {title: (rows[title], section) for title, section in by_title.items()}


def page(lessons: Sequence[tuple[Lesson, Outcome, float]], circumstances: Mapping[str, str]) -> str:
    """The lessons as one HTML file without references."""
    parts = [_HEAD, f"<h1>The field notes, repeated</h1><p>{html.escape(INTRODUCTION)}</p>"]
    parts.append("<p>" + "<br>".join(html.escape(f"{k}: {v}") for k, v in circumstances.items()) + "</p>")
    for lesson, outcome, seconds in lessons:
        source = base64.b64encode(picture(outcome)).decode()
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in outcome.rows
        )
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in outcome.header)
        found = "".join(
            f"<li>{html.escape(difference.sentence())}</li>" for difference in outcome.differences
        )
        remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in outcome.remarks)
        parts.append(
            f'<h2 id="{lesson.name}">{html.escape(lesson.title)} <b class="{outcome.verdict.split()[0]}">'
            f"{outcome.verdict}</b></h2><p><i>The notes:</i> {html.escape(lesson.claim)}</p>"
            f"<p><i>Here:</i> {html.escape(lesson.setup)} {seconds / 60:.0f} minutes.</p>"
            f'<img src="data:image/png;base64,{source}" alt="{html.escape(lesson.title)}">'
            f"<table><tr>{head}</tr>{rows}</table><ul>{found}</ul>{remarks}"
        )
    return "".join(parts)


def write(
    lessons: Sequence[tuple[Lesson, Outcome, float]],
    circumstances: Mapping[str, str],
    out: Path,
    order: Sequence[str],
    document: Path | None = None,
) -> None:
    """Writes out/field-notes.html and a Markdown file with its figures beside it; see `markdown`.

    The document keeps lessons that ran elsewhere, so all can be repeated piece by piece.
    """
    (out / "field-notes.html").write_text(page(lessons, circumstances))
    target = document or out / "field-notes.md"
    figures = target.parent / "images" / "field-notes"
    figures.mkdir(parents=True, exist_ok=True)
    for lesson, outcome, _ in lessons:
        (figures / f"{lesson.name}.png").write_bytes(picture(outcome))
    earlier = document.read_text() if document and document.exists() else ""
    target.write_text(markdown(lessons, circumstances, "images/field-notes", order, earlier))


def anchor(title: str) -> str:
    """The anchor of a heading in Markdown."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


_HEAD = """<!doctype html><meta charset="utf-8"><title>The field notes, repeated</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
img{max-width:100%}table{border-collapse:collapse}
td,th{border-bottom:1px solid #ddd;padding:.2rem .8rem;text-align:left}
h2{margin-top:3rem}h2 b{font-size:.7em;padding:.1rem .5rem;border-radius:.3rem;background:#eee}
b.shown{background:#cfe8cf}b.contradicted{background:#f3cccc}</style>"""
