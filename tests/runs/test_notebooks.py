"""The notebooks run from top to bottom, and their figures are not empty."""

import base64
import io
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[notebooks]'")
nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[notebooks]'")

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the files that notebooks use, so that their runs stay out of this checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("colab",):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks/generation.json", folder / "benchmarks")
    return folder


def pictures(notebook):
    """The figures of an executed notebook as arrays."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                yield np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("L"), float)


@pytest.mark.runs
@pytest.mark.parametrize(("name", "figures"), [("quickstart", 2), ("latents", 4), ("finetune", 1)])
def test_a_notebook_runs_from_top_to_bottom(checkout, name, figures):
    path = checkout / "colab" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:  # vaejax is installed already
        cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%pip"))
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(checkout)}}).execute()
    if kept := os.environ.get("VAEJAX_NOTEBOOKS"):
        nbformat.write(notebook, pathlib.Path(kept) / f"{name}.ipynb")
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "error:" not in printed and "Traceback" not in printed
    found = list(pictures(notebook))
    assert len(found) == figures
    for picture in found:  # not blank, and not only axes: every third has content
        assert picture.std() > 10
        assert all(part.std() > 1 for part in np.array_split(picture, 3, axis=1))
