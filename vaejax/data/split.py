"""The split of media files into training and held-out parts, which a run keeps in RUN/splits.parquet.

A file that a run has split once stays on its side, however the folder grows or moves. A file that is reached
by several names, through overlapping folders or links, counts once.

The file has a row for each file, except for large folders, which have one row with a rule.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vaejax.data.split_rule import HELD_OUT_TAIL, MANY_CLIPS, NOTHING, WHOLE, Facts, Rule, path_hash
from vaejax.data.table import count_of
from vaejax.errors import InputError
from vaejax.files import atomic_file
from vaejax.runtime import storage

_SCHEMA = pa.schema(
    {
        "folder": pa.string(),  # the folder of a source
        "path": pa.string(),  # relative to the folder
        "held_out_from": pa.float64(),
    }
)
# Only if there are rules. A row with a rule has no path, and only such a row has `photos_below`.
_RULES = pa.schema({"photos_below": pa.float64(), "clips_below": pa.float64()})


def held_out(paths: Iterable[str], holdout: float, others: Sequence[float] = ()) -> set[str]:
    """The held-out paths: those with a hash below `holdout`, but never all files.

    If `holdout` is above 0 and there are several files, at least one is held out.

    Args:
      paths: the files to split.
      holdout: held-out fraction.
      others: times from which other files of this kind, split earlier, are held out.
    """
    ordered = sorted(paths, key=path_hash)
    count = sum(path_hash(path) < holdout for path in ordered)
    least = int(holdout > 0 and WHOLE not in others)
    most = len(ordered) - int(NOTHING not in others)
    return set(ordered[: min(max(count, least), max(0, most))])


def split_files(
    files: Iterable[Mapping[str, Any]], holdout: float, known: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The split of a folder's files.

    If there are at least MANY_CLIPS clips, whole clips are held out. With fewer, the last fifth of each is
    held out. Clips that are added later are treated like those that were split first.

    Args:
      files: path, name, frames and duration of each file, as in a media index. The name, if there is one,
        decides on its side.
      holdout: held-out fraction of the photos, and of at least MANY_CLIPS clips; 0 holds out nothing.
      known: the split of files that were split earlier.
    """
    known = known or {}
    photos: dict[str, str] = {}
    clips: dict[str, str] = {}
    durations: dict[str, float] = {}
    for file in files:
        (clips if file["frames"] > 1 else photos)[file["path"]] = file.get("name") or file["path"]
        durations[file["path"]] = file["duration"]
    earlier = [known[path] for path in clips if path in known]
    cut = any(WHOLE < time < NOTHING for time in earlier) if earlier else len(clips) < MANY_CLIPS
    split = _split_whole(photos, holdout, known)
    if cut and holdout > 0:
        seams = {path: (1 - HELD_OUT_TAIL) * durations[path] for path in clips}
        return split | {path: known.get(path, seam) for path, seam in seams.items()}
    return split | _split_whole(clips, holdout, known)


def _split_whole(names: Mapping[str, str], holdout: float, known: Mapping[str, float]) -> dict[str, float]:
    """Splits files of one kind, {path: name}, holding out whole files by their names."""
    new = [path for path in names if path not in known]
    kept = {path: known[path] for path in names if path in known}
    chosen = held_out([names[path] for path in new], holdout, list(kept.values()))
    return kept | {path: WHOLE if names[path] in chosen else NOTHING for path in new}


class Split:
    """The split of all folders of a run, which continues that of an earlier start.

    Args:
      kept: time from which a file is held out, by its folder and its path in the folder.
      resumed: whether `kept` belongs to the same run; otherwise to the run from which this one starts.
      rules: the rules of large folders.
    """

    def __init__(
        self,
        kept: Mapping[tuple[str, str], float] | None = None,
        resumed: bool = True,
        rules: Mapping[str, Rule] | None = None,
    ):
        self._kept, self._resumed, self._rules = dict(kept or {}), resumed, dict(rules or {})
        self._ruled: dict[str, tuple[Rule, int]] = {}  # the rules in use, and the numbers of repeated files
        self._by_file: set[str] = set()  # folders whose files are split one by one, however many there are
        self._moved: dict[str, str] = {}  # folder in `kept` -> its new path
        self._known: dict[str, float] = {}  # real path of a file -> its entry in `kept`
        self._real_folders: dict[str, str] = {}
        self._present: dict[tuple[str, str], float] = {}
        self._seen: set[str] = set()  # real paths of the files in `_present`
        self._new: list[tuple[bool, float]] = []  # whether a new file is a clip, and its entry
        self._repeated = 0

    @classmethod
    def read(cls, path: str | os.PathLike, resumed: bool = True) -> Self:
        """Reads splits.parquet of a run; an empty split if there is none.

        Raises:
          InputError: if the file is damaged or cannot be read.
        """
        try:
            table = pq.read_table(path)
            rules: dict[str, Rule] = {}
            if _RULES.names[0] in table.column_names:
                below = table[_RULES.names[0]]
                for row in table.filter(below.is_valid()).to_pylist():
                    rules[row["folder"]] = Rule(row["photos_below"], row["clips_below"])
                table = table.filter(below.is_null()).select(_SCHEMA.names)
            table = table.cast(_SCHEMA)
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or "damaged"
            raise InputError(
                f"{path}: {reason}; accepted: the file that the run wrote, or no file, to split media anew"
            ) from error
        folders, paths, times = (column.to_pylist() for column in table.columns)
        return cls(dict(zip(zip(folders, paths, strict=True), times, strict=True)), resumed, rules)

    def locate(self, folders: Sequence[str]) -> None:
        """Finds the files of the earlier split in the folders of the configuration.

        A folder may have been moved or copied. Each earlier folder that is no longer listed is therefore
        taken for the first remaining new folder that does not overlap it.
        """
        folders = [storage.located(folder) for folder in folders]
        earlier = list(dict.fromkeys([*(folder for folder, _ in self._kept), *self._rules]))
        new = [folder for folder in folders if folder not in earlier]
        unlisted = [folder for folder in earlier if folder not in folders] if self._resumed else []
        for folder in unlisted:
            place = next((each for each in new if not _overlap(folder, each)), None)
            if place is not None:
                self._moved[folder] = place
                new.remove(place)
        # Unmoved folders come last, so a file at its earlier path overrides a moved one.
        for moved in (True, False):
            for (folder, path), time in self._kept.items():
                if not moved or folder in self._moved:
                    place = self._moved[folder] if moved else folder
                    self._known[self._real(place, path)] = time
        by_file = [_real_folder(self._moved.get(folder, folder)) for folder in {f for f, _ in self._kept}]
        listed = [_real_folder(folder) for folder in folders]
        for number, folder in enumerate(listed):
            others = [*by_file, *listed[:number], *listed[number + 1 :]]
            if any(_overlap(folder, other) for other in others):
                self._by_file.add(folders[number])

    def is_by_file(self, folder: str) -> bool:
        """Whether a folder's files are split one by one, however many there are.

        They are if the run began that way, or if another folder of the configuration overlaps this one.
        """
        return storage.located(folder) in self._by_file

    def has_rule(self, folder: str) -> bool:
        """Whether the run splits a folder by a rule already."""
        return self._rule(storage.located(folder)) is not None

    def rule(self, folder: str, facts: Facts, holdout: float) -> Rule:
        """The rule that splits a large folder.

        Args:
          folder: one of the folders given to `locate`.
          facts: its files.
          holdout: held-out fraction, if the folder is new.
        """
        folder = storage.located(folder)
        rule = self._rule(folder) or Rule.of(facts.photos, facts.clips, holdout)
        self._ruled[folder] = rule, facts.repeated
        return rule

    def _rule(self, folder: str) -> Rule | None:
        """The earlier rule of a folder, which may have been moved."""
        former = next((old for old, new in self._moved.items() if new == folder), folder)
        return self._rules.get(folder) or self._rules.get(former)

    def divide(self, folder: str, index: pa.Table, holdout: float) -> dict[str, float]:
        """Splits the readable files of a folder, except files that an earlier folder also contains.

        Args:
          folder: one of the folders given to `locate`.
          index: a table with the columns path, frames, duration and error.
          holdout: held-out fraction of new files; see `split_files`.

        Returns:
          The time from which each file is held out, by its path in the folder.
        """
        folder = storage.located(folder)
        rule = self._rule(folder)
        files, known = [], {}
        for file in readable(index):
            real = self._real(folder, file["path"])
            if real in self._seen:
                self._repeated += 1
                continue
            self._seen.add(real)
            files.append(file)
            if real in self._known:
                known[file["path"]] = self._known[real]
            elif rule:
                known[file["path"]] = rule.seam(file)
        split = split_files(files, holdout, known)
        self._present |= {(folder, path): time for path, time in split.items()}
        self._new += [(f["frames"] > 1, split[f["path"]]) for f in files if f["path"] not in known]
        return split

    def write(self, path: str | os.PathLike) -> None:
        """Writes splits.parquet; files of this run that are gone stay in it, because they may come back."""
        rows = self._present | {
            (self._moved.get(folder, folder), name): self._kept[folder, name] for folder, name in self._gone()
        }
        gone = {
            self._moved.get(folder, folder): rule for folder, rule in self._rules.items() if self._resumed
        }
        rules = gone | {folder: rule for folder, (rule, _) in self._ruled.items()}
        if (rows, rules) == (self._kept, self._rules) and os.path.exists(path):
            return
        columns = [[folder for folder, _ in rows], [name for _, name in rows], list(rows.values())]
        table = pa.table(columns, schema=_SCHEMA)
        if rules:
            folders, values = list(rules), list(zip(*rules.values(), strict=True))
            of_rules = pa.table([folders, *map(list, values)], ["folder", *_RULES.names])
            schema = pa.schema([*_SCHEMA, *_RULES])
            table = pa.concat_tables([table, of_rules], promote_options="default").select(schema.names)
            table = table.cast(schema)
        with atomic_file(path) as file:
            pq.write_table(table, file)

    def report(self) -> list[str]:
        """Lines that say how many files are new or gone since the last start, and how many repeat others."""
        parts = []
        if self._kept and self._resumed:
            parts = [self._new_files()] if self._new else []
            if gone := len(self._gone()):
                parts.append(f"{count_of(gone, 'file')} {'is' if gone == 1 else 'are'} gone or unreadable")
        lines = [f"media: {'; '.join(parts)}"] if parts else []
        if repeated := self._repeated + sum(count for _, count in self._ruled.values()):
            lines.append(
                f"media: {count_of(repeated, 'file')} with several paths or in overlapping folders"
                f" count{'s' * (repeated == 1)} once"
            )
        return lines

    def _new_files(self) -> str:
        clips, times = sum(clip for clip, _ in self._new), [time for _, time in self._new]
        kinds = {"photo": len(times) - clips, "clip": clips}
        names = " and ".join(count_of(count, noun) for noun, count in kinds.items() if count)
        trained, whole = times.count(NOTHING), times.count(WHOLE)
        cut = len(times) - trained - whole
        sides = [f"{trained} for training"] * bool(trained) + [f"{whole} held out"] * bool(whole)
        sides += [f"the last fifth of {count_of(cut, 'clip')} held out"] * bool(cut)
        return f"{names} {'is' if len(times) == 1 else 'are'} new: {', '.join(sides)}"

    def _gone(self) -> list[tuple[str, str]]:
        """The entries of this run's earlier split that have no readable file now."""
        if not self._resumed:
            return []
        return [
            (folder, path)
            for folder, path in self._kept
            if (folder, path) not in self._present
            and self._real(folder, path) not in self._seen
            and self._real(self._moved.get(folder, folder), path) not in self._seen
        ]

    def _real(self, folder: str, path: str) -> str:
        """The path of a file with its links resolved."""
        if storage.is_url(folder) or storage.is_url(path):
            return storage.join(folder, path)
        parent, name = os.path.split(os.path.join(folder, path))
        if parent not in self._real_folders:
            self._real_folders[parent] = os.path.realpath(parent)
        real = os.path.join(self._real_folders[parent], name)
        return os.path.realpath(real) if os.path.islink(real) else real


def seams(split: Mapping[str, float], index: pa.Table) -> np.ndarray:
    """The times of a split along the rows of a media index, float64 (n,); NaN where it has none."""
    return np.array([split.get(path, math.nan) for path in index["path"].to_pylist()], np.float64)


def readable(index: pa.Table) -> list[dict[str, Any]]:
    """Path, name, frames and duration of the files of a media index that can be read, sorted by path."""
    sound = index.filter(index["error"].is_null()).sort_by("path")
    wanted = [name for name in ("path", "name", "frames", "duration") if name in index.column_names]
    return sound.select(wanted).to_pylist()


def _real_folder(folder: str) -> str:
    """The path of a folder with its links resolved; a URL itself."""
    return folder if storage.is_url(folder) else os.path.realpath(folder)


def _overlap(folder: str, other: str) -> bool:
    """Whether one folder contains the other."""
    return f"{folder}/".startswith(f"{other}/") or f"{other}/".startswith(f"{folder}/")
