"""Folders as the value of a setting: FOLDER[,FOLDER], or a list, for folders with a comma in their names."""

import abc
import ast
import os
from typing import Any


class Folders(abc.ABC):  # noqa: B024 - only its registered types have instances
    """The type of a setting that accepts text, a list or a tuple."""


for _type in (str, list, tuple):
    Folders.register(_type)


def is_folders(value: Any) -> bool:
    """Whether a value is text, or a list or tuple of texts."""
    return isinstance(value, str) or (
        isinstance(value, list | tuple) and all(isinstance(folder, str) for folder in value)
    )


def folder_list(value: Any) -> list[str]:
    """The folders that a value names, with ~ expanded; [] unless `is_folders` holds for it.

    Text is split at its commas, unless it names an existing folder, or is a list or tuple in Python syntax.
    """
    if not is_folders(value):
        return []
    if isinstance(value, str):
        value = [value] if os.path.isdir(os.path.expanduser(value)) else _split(value)
    return [os.path.expanduser(folder) for folder in value if folder]


def _split(text: str) -> list[str] | tuple[str, ...]:
    if text.startswith(("[", "(")):
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):  # a folder's name may begin with a bracket
            value = text
        if is_folders(value) and not isinstance(value, str):
            return value
    return [part.strip() for part in text.split(",")]
