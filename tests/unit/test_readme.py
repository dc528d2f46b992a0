"""The README and docs/: limits of length, and the code that they show."""

import pathlib
import re
from fractions import Fraction

import numpy as np
import pytest

from vaejax.codec.latent_file import Facts, LatentWriter

SIZES = [(9, 32, 48), (1, 32, 48), (12, 30, 41), (9, 48, 32), (17, 32, 48)]
ROOT = pathlib.Path(__file__).parents[2]


def block(path, word):
    """The one Python block of a document that contains `word`."""
    (code,) = (
        code
        for code in re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
        if word in code
    )
    return code


def sentences(text):
    """Its sentences, table cells and list items; a span of code counts as one word."""
    text = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    return [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+|\n\s*\n|\n\s*[-*#>]|\|", text)]


def test_the_readme_is_short_and_so_are_its_sentences():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 230
    assert [s for s in sentences(text) if len(s.split()) > 30] == []


def test_links_to_files_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_reader_in_the_docs_gives_a_trainer_latents_of_one_size(tmp_path):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    rng, written = np.random.default_rng(0), {}
    for i, (frames, height, width) in enumerate(SIZES):
        shape = 1 + -(-(frames - 1) // 4), -(-height // 8), -(-width // 8), 16
        written[i] = rng.normal(size=shape).astype(np.float16)
        kind, fps = ("video", Fraction(25)) if frames > 1 else ("image", None)
        size, no_padding = (frames, height, width), {"frames": 0, "height": 0, "width": 0}
        channels = (0.0,) * 16, (1.0,) * 16
        facts = Facts(kind, *size, fps, False, frames / 25, *channels, 4, 8, no_padding, "0" * 16, "x")
        with open(tmp_path / f"{i}.latent", "w+b") as file:
            writer = LatentWriter(file, 16, "float16")
            writer.append(written[i])
            writer.end(facts, np.arange(frames) / 25)
    found = {}
    exec(block("docs/latent-format.md", "class Latents"), found)
    latents = found["Latents"](tmp_path, 3, 4, 6)
    assert len(latents) == 3
    (batch,) = torch.utils.data.DataLoader(latents, batch_size=3)
    assert batch.shape == (3, 3, 4, 6, 16) and batch.dtype == torch.float32
    np.testing.assert_array_equal(batch, np.stack([written[i][:3] for i in (0, 2, 4)]).astype(np.float32))
