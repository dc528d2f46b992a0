"""The kinds of values that settings accept, and the definition of a setting."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vaejax.config.folders import is_folders


class Accepts(NamedTuple):
    """The values that a setting accepts, and their description in error messages."""

    test: Callable[[Any], bool]
    text: str


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def one_of(*values: Any) -> Accepts:
    """Returns the `Accepts` of a setting whose value must be one of `values`."""
    return Accepts(lambda v: v in values, "one of " + ", ".join(map(repr, values)))


POSITIVE = Accepts(lambda v: 0 < v < math.inf, "a finite number above 0")
FROM_0 = Accepts(lambda v: 0 <= v < math.inf, "a finite number, 0 or more")
FROM_1 = Accepts(lambda v: 1 <= v < math.inf, "a finite number, 1 or more")
NATURAL = Accepts(lambda v: is_whole(v) and v >= 0, "a whole number, 0 or more")
COUNT = Accepts(lambda v: is_whole(v) and v >= 1, "a whole number, 1 or more")
SHARE = Accepts(lambda v: 0 <= v < 1, "a number of at least 0 and below 1")
UNIT = Accepts(lambda v: 0 <= v <= 1, "a number from 0 to 1")
TEXT = Accepts(lambda v: isinstance(v, str), "text")
FOLDERS = Accepts(is_folders, "FOLDER[,FOLDER], or a list of folders")
FLAG = Accepts(lambda v: isinstance(v, bool), "True or False")
ENTRIES = Accepts(lambda v: isinstance(v, Mapping), "a mapping of entries")


def setting(default: Any, accepts: Accepts, doc: str) -> Any:
    """Defines a field of a section: its default, accepted values and meaning."""
    metadata = {"accepts": accepts, "doc": doc}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: type) -> Any:
    """Defines a field that holds another section."""
    return dataclasses.field(default_factory=kind)
