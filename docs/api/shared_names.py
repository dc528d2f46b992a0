"""A Griffe extension: the API pages list `mean, std: of each channel` as two names with one description."""

import re

import griffe

SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$", re.MULTILINE)


class SharedNames(griffe.Extension):
    """Splits every docstring line `a, b: text` into `a: text` and `b: text`, before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """Called by Griffe for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = SHARED.sub(_split, obj.docstring.value)


def _split(found: re.Match) -> str:
    indent, names, text = found.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
