"""The page about runs as HTML."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from vaejax.evaluate import page
from vaejax.evaluate.page import NONE, number, text
from vaejax.rundir.console import duration
from vaejax.watch import charts, thumbnails
from vaejax.watch.reader import Run, State

LISTED = 10  # most bad steps and most unreadable files that are listed

_STYLE = """
h1 small{font-size:.6em;margin-left:.6em}
.runs{display:flex;flex-wrap:wrap;gap:1em}
.run{border:1px solid var(--line);border-radius:8px;padding:.8em 1em;min-width:320px;flex:1;max-width:720px}
.state{border-radius:1em;padding:.1em .7em;font-size:.85em;color:#fff;background:#5a6a7a;margin-left:.6em}
.training,.evaluating{background:#0a7a4f}.stalled{background:#b3261e}.done{background:#0b63a5}
.bar{height:6px;border-radius:3px;background:var(--line);margin:.6em 0;overflow:hidden}
.bar div{height:100%}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(400px,1fr));gap:0 1.5em}
svg{width:100%;height:auto}figcaption{font-weight:600;font-size:.95em}
.strip td,.strip th{border:0;padding:.2em .35em;font-weight:400}
.strip td,.strip th,.strip td:first-child,.strip th:first-child{text-align:center}
.strip .apart{padding-left:1.6em}td.left,th.left{text-align:left}
ul{padding-left:1.2em;margin:.4em 0}code{font-size:.9em;overflow-wrap:anywhere}
"""
# Reloads the page and keeps its scroll position. A hidden page is reloaded once it is visible.
_RELOAD = """<script>
const place = "vaejax " + location.pathname;
try { addEventListener("load", () => scrollTo(0, sessionStorage.getItem(place) || 0)); } catch {}
function again() {
  if (document.hidden) return addEventListener("visibilitychange", again, {once: true});
  try { sessionStorage.setItem(place, scrollY); } catch {}
  location.reload();
}
setTimeout(again, MILLISECONDS);
</script><noscript><meta http-equiv=refresh content=SECONDS></noscript>"""


def html(runs: Sequence[Run], now: float, every: float) -> str:
    """The text of the page.

    Args:
      runs: the runs, in the order of their colors.
      now: the time, in seconds since 1970.
      every: seconds after which the page loads itself again; 0: never.
    """
    named = dict(zip(_names([run.folder.name for run in runs]), runs, strict=True))
    buckets = sorted({bucket for run in runs for bucket in run.buckets})
    title, written = ", ".join(named), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    head, again = page.head(f"{title} - vaejax", _STYLE), ""
    if every:
        head += _RELOAD.replace("MILLISECONDS", f"{1000 * every:.0f}").replace("SECONDS", f"{every:.0f}")
        again = f", refreshed every {every:g} s"
    sections = [
        head,
        f"<h1>{text(title)}<small class=soft>{written}{again}</small></h1>",
        f"<div class=runs>{''.join(_card(i, *item) for i, item in enumerate(named.items()))}</div>",
        _section("Verdicts", _verdicts(named)),
        _section("Differences in the configuration", _differences(named)),
        _section("Scores", _scores(named, buckets)),
        *(_section(bucket, _bucket(named, bucket)) for bucket in buckets),
        _section("Updates", charts.of_updates(named)),
        _section("Bad steps", _listed(named, lambda run: run.bad_steps, _bad_steps)),
        _section("Unreadable files", _listed(named, lambda run: run.bad_samples, _bad_samples)),
    ]
    return "\n".join(filter(None, sections)) + "\n</html>\n"


def _names(paths: Sequence[str]) -> list[str]:
    """The shortest endings that tell different paths apart."""
    split = [path.strip("/").split("/") for path in paths]
    for count in range(1, max(map(len, split))):
        names = ["/".join(path[-count:]) for path in split]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _section(title: str, body: str) -> str:
    return f"<h2>{text(title)}</h2>{body}" if body else ""


def _card(position: int, name: str, run: Run) -> str:
    """The header of a run: name, state, progress, network and buckets."""
    config, share = run.config, min(1.0, run.step / run.config.steps)
    progress = f"step {run.step:,} of {config.steps:,}"
    running = run.state in (State.TRAINING, State.EVALUATING) and run.step < config.steps
    if running and math.isfinite(run.seconds_left):
        progress += f", {duration(run.seconds_left)} of training left"
    facts = [f"{run.parameters / 1e6:.1f}M parameters"] if run.parameters else []
    facts += [f"{config.model.latent_channels} latent channels", config.model.dtype]
    batches = [f"{config.data.buckets[bucket]['batch']} x {bucket}" for bucket in run.buckets]
    return (
        f"<div class=run><span style='color:{page.color(position)}'>●</span> <b>{text(name)}</b>"
        f"<span class='state {run.state.value.split()[0]}'>{run.state.value}</span>"
        f"<div class=bar><div style='width:{100 * share:.1f}%;background:{page.color(position)}'></div></div>"
        f"{progress}; last output {duration(run.age)} ago"
        f"<br><span class=soft>{text(', '.join(facts))}<br>per update: {text(', '.join(batches))}"
        f"<br><code>{text(run.folder.name)}</code></span></div>"
    )


def _verdicts(runs: Mapping[str, Run]) -> str:
    """The alarms of each run's latest evaluation; '' if no run was judged."""
    body = ""
    for name, run in runs.items():
        if not run.verdicts:
            continue
        step, sentences = max(run.verdicts.items())
        where = f"{text(name)}, step {step:,}" if len(runs) > 1 else f"step {step:,}"
        items = "".join(f"<li>{text(sentence)}" for sentence in sentences)
        body += f"<p>{where}: " + (f"<ul>{items}</ul>" if items else "no alarm")
    return body


def _differences(runs: Mapping[str, Run]) -> str:
    """The configuration keys in which runs differ; '' for one run."""
    if len(runs) < 2:
        return ""
    settings = [dict(_settings(run.config.to_dict())) for run in runs.values()]
    rows = []
    for key in dict.fromkeys(key for of_run in settings for key in of_run):
        values = [of_run.get(key, NONE) for of_run in settings]
        if len(set(values)) > 1:
            rows.append([f"<code>{cell}</code>" for cell in (text(key), *values)])
    return _table(["key", *map(text, runs)], rows, left=1 + len(runs)) if rows else "<p class=soft>None."


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (key with dots, value as HTML) of nested mappings, including fields of buckets and sources."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield prefix + key, text(repr(value))


def _scores(runs: Mapping[str, Run], buckets: Sequence[str]) -> str:
    """The scores of each run's latest evaluation by bucket."""
    heads = ["bucket", *(["run"] if len(runs) > 1 else []), "step", "PSNR, dB", "vs linear codec, dB"]
    heads += ["best PSNR, dB", "SSIM", "LPIPS", "samples", "files"]
    rows = []
    for bucket in buckets:
        for name, run in runs.items():
            if bucket in run.buckets:
                label = [text(bucket), *([text(name)] if len(runs) > 1 else [])]
                row = [*label, *_score_cells(run, bucket)]
                rows.append(row + [NONE] * (len(heads) - len(row)))
    note = (
        "<p class=soft>Latest evaluation on held-out samples, with the averaged (EMA) parameters. A VAE below"
        " the linear codec has learned nothing that a matrix cannot do."
    )
    return _table(heads, rows, left=heads.index("step")) + note


def _score_cells(run: Run, bucket: str) -> list[str]:
    def latest(name: str, digits: int) -> str:
        return number(run.latest("eval", bucket, name), digits)

    curve = [(step, psnr) for step, psnr in run.curve("eval", bucket, "psnr") if not math.isnan(psnr)]
    if not curve:
        return [NONE, "not evaluated"]
    (step, psnr), (best_step, best) = curve[-1], max(curve, key=lambda point: point[1])
    gain = psnr - run.latest("eval", bucket, "psnr_linear")
    return [
        f"{step:,.0f}",
        number(psnr, 2),
        f"{gain:+.2f}" if math.isfinite(gain) else NONE,
        f"{number(best, 2)} <span class=soft>(step {best_step:,.0f})</span>",
        latest("ssim", 4),
        latest("lpips_alexnet", 3),
        latest("samples", 0),
        latest("files", 0),
    ]


def _bucket(runs: Mapping[str, Run], bucket: str) -> str:
    """The charts and panels of a bucket."""
    strips = []
    for name, run in runs.items():
        if shown := thumbnails.strip(run, bucket):
            heading = f"<h3>{text(name)}</h3>" if len(runs) > 1 else ""
            strips.append(f"{heading}<div class=wide>{shown}</div>")
    return charts.of_bucket(runs, bucket) + "".join(strips)


def _listed(
    runs: Mapping[str, Run],
    lines: Callable[[Run], Sequence[dict]],
    rows: Callable[[Sequence[dict]], Iterable[str]],
) -> str:
    """The number of the selected lines of each run, and the first rows of them; '' if there are none."""
    body = ""
    for name, run in runs.items():
        if found := lines(run):
            heading = f"{text(name)}: " if len(runs) > 1 else ""
            more = f", of which {LISTED} are listed" if len(found) > LISTED else ""
            items = "".join(f"<li>{text(row)}" for row in rows(found))
            body += f"<p>{heading}{len(found)}{more}<ul class=soft>{items}</ul>"
    return body


def _bad_steps(lines: Sequence[dict]) -> Iterator[str]:
    """The latest skipped updates and rollbacks."""
    for line in reversed(lines[-LISTED:]):
        if "back_to" in line:
            yield f"step {line.get('step')}: rolled back to step {line['back_to']}"
            continue
        samples = line.get("samples")
        pairs = samples.items() if isinstance(samples, dict) else ()
        found = (f"{bucket}: {', '.join(os.path.basename(str(s)) for s in some)}" for bucket, some in pairs)
        yield f"update {line.get('step')} skipped; samples of {'; '.join(found)}"


def _bad_samples(lines: Sequence[dict]) -> Iterator[str]:
    """The unreadable files that were met most often."""

    def count(line: dict) -> int:
        return line["count"] if isinstance(line.get("count"), int) else 0

    for line in sorted(lines, key=count, reverse=True)[:LISTED]:
        yield f"{line.get('path')}: {line.get('reason')} (met {count(line)}x)"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A table of HTML cells, of which the first `left` columns are left-aligned."""
    kinds = [" class=left" if i < left else "" for i in range(len(heads))]
    head = "".join(f"<th{kind}>{cell}</th>" for kind, cell in zip(kinds, heads, strict=True))
    cells = ("".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"
