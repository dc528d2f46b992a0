"""Metrics of a run in a bucket: immutable parts, because an object cannot be appended to.

metrics/NUMBER-FIRST.jsonl follows the parts with lower numbers, and replaces what they say of step FIRST and
later steps. So a resumed run needs to delete nothing: its first part replaces what the killed one had written
since the checkpoint.
"""

import json
import re
from collections.abc import Iterable, Mapping

FOLDER = "metrics"
_NAME = re.compile(rf"{FOLDER}/(?P<number>\d+)-(?P<first>\d+)\.jsonl")


def name(number: int, first: int) -> str:
    """The path of a part in the folder of its run."""
    return f"{FOLDER}/{number:08d}-{first}.jsonl"


def number(path: str) -> int | None:
    """The number of a part; None if the path is not that of a part."""
    found = _NAME.fullmatch(path)
    return int(found["number"]) if found else None


def merged(parts: Mapping[str, bytes]) -> bytes:
    """The metrics that parts hold together, {path: content}, as in metrics.jsonl."""
    lines: list[tuple[int, bytes]] = []
    for path in sorted(parts, key=lambda path: number(path) or 0):
        found = _NAME.fullmatch(path)
        if found:
            first = int(found["first"])
            if lines and lines[-1][0] >= first:  # steps never decrease within a session
                lines = [(step, line) for step, line in lines if step < first]
            lines += [(step_of(line), line) for line in parts[path].splitlines(keepends=True)]
    return b"".join(line for _, line in lines)


def following(lines: Iterable[bytes]) -> int:
    """The first step after all of these lines; 0 if there are none."""
    return max((step_of(line) for line in lines), default=-1) + 1


def step_of(line: bytes) -> int:
    """The step of a line of metrics."""
    return json.loads(line)["step"]
