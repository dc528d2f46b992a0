"""What the offline folders of Weights & Biases hold, read independently of vaejax, with checksums."""

import json
import pathlib
import struct
import zlib

from wandb.proto.wandb_internal_pb2 import Record


def records(path: pathlib.Path) -> list[Record]:
    """The whole records of a .wandb file: LevelDB's log format, 7 bytes of header, blocks of 32 KiB."""
    data, parts, found = path.read_bytes(), [], []
    for block in (data[i : i + 32768] for i in range(0, len(data), 32768)):
        rest = block[7:] if block[:4] == b":W&B" else block
        while len(rest) >= 7:
            checksum, length, kind = struct.unpack("<IHB", rest[:7])
            part, rest = rest[7 : 7 + length], rest[7 + length :]
            if kind == 0 or len(part) < length:
                return found
            assert zlib.crc32(bytes([kind]) + part) == checksum
            parts.append(part)
            if kind in (1, 4):
                found.append(Record.FromString(b"".join(parts)))
                parts = []
    return found


def sessions(workdir: pathlib.Path) -> list[list[Record]]:
    """The records of each offline folder of a run, in the order of their start."""
    logs = sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb"))
    return [records(path) for path in logs if path.stat().st_size]


def rows(session: list[Record]) -> list[tuple[int, dict[str, object]]]:
    """The rows of a session: the step of W&B, and values by key; a picture or clip is its path."""
    found = []
    for record in session:
        if not record.HasField("history"):
            continue
        values = {}
        for item in record.history.item:
            name, *field = item.nested_key or [item.key]
            if not name.startswith("_") and (not field or field == ["path"]):
                values[name] = json.loads(item.value_json)
        found.append((record.history.step.num, values))
    return found


def expected(workdir: pathlib.Path, last: int) -> dict[int, dict[str, object]]:
    """What the rows must hold together, from metrics.jsonl and panels/, up to a step."""
    found: dict[int, dict[str, object]] = {}
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        step, prefix = line.pop("step"), f"{line.pop('split')}/{line.pop('bucket')}/"
        numbers = {prefix + k: float(v) for k, v in line.items() if not isinstance(v, list)}
        found.setdefault(step, {}).update(numbers)
    for path in (workdir / "panels").glob("*/*"):
        kind = {".png": "panels", ".mp4": "clips"}[path.suffix]
        found.setdefault(int(path.parent.name), {})[f"{kind}/{path.stem}"] = path.read_bytes()
    return {step: values for step, values in found.items() if step <= last}


def together(workdir: pathlib.Path) -> dict[int, dict[str, object]]:
    """The rows of all sessions, with pictures and clips as bytes; fails if a step is not above all before."""
    found: dict[int, dict[str, object]] = {}
    for path in sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb")):
        for step, values in rows(records(path)):
            assert step > max(found, default=-1), (path, step)
            found[step] = {
                key: (path.parent / "files" / value).read_bytes()
                if key.startswith(("panels/", "clips/"))
                else float(value)
                for key, value in values.items()
            }
    return found
