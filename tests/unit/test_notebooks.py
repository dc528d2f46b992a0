"""The notebooks' imports; tests/runs/test_notebooks.py runs every cell."""

import ast
import importlib
import json
import pathlib
import re

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "colab").glob("*.ipynb"))


def imported(path):
    """Yields (module, name or None) for every import of vaejax in a notebook's cells."""
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        # A shell command, with the lines that continue it, is not Python.
        source = re.sub(r"^(\s*)[!%](?:.*\\\n)*.*$", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names if alias.name.startswith("vaejax"))
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vaejax"):
                yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_import_of_a_notebook_exists(path):
    found = list(imported(path))
    assert found, "no import of vaejax was found"
    for module, name in found:
        loaded = importlib.import_module(module)
        if name is not None and not hasattr(loaded, name):
            importlib.import_module(f"{module}.{name}")
