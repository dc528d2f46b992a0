"""Mutated latents, runs, exports and indices: read unchanged or refused by name, in bounded time and memory.

FUZZ_SECONDS=1200 runs for 20 minutes; FUZZ_SEED draws other mutations.
"""

import itertools
import json
import os
import pathlib
import random
import selectors
import shutil
import subprocess
import sys
import time

import pytest

from tests.support.mutation import mutated, resident
from vaejax.data import index

KEPT = pathlib.Path(__file__).parents[1] / "support" / "compatibility"
LONGEST, LARGEST = 20.0, 1.5e9  # seconds for a file; bytes of the reader's memory


class Reader:
    """A process that reads files as tests/support/own_files.py describes."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.own_files"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answers = selectors.DefaultSelector()
        self._answers.register(self.process.stdout, selectors.EVENT_READ)

    def read(self, kind, path, longest=LONGEST):
        """The answer; None if the process died."""
        print(json.dumps([kind, str(path)]), file=self.process.stdin, flush=True)
        assert self._answers.select(longest), f"{path}: no answer within {longest} s"
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def close(self):
        self.process.kill()
        self.process.communicate()


def intact(folder):
    """Copies of what the kept commit wrote, and an index: (kind, path to read, the files to mutate)."""
    for name in ("run", "export", "latents", "media"):
        shutil.copytree(KEPT / name, folder / name)
    index.load_or_build(str(folder / "media"), workers=1, progress=False)
    latents = [("latent", path, [path]) for path in sorted((folder / "latents").iterdir())]
    run = [path for path in (folder / "run" / "checkpoints" / "4").rglob("*") if path.is_file()]
    export = [folder / "export" / name for name in ("config.json", "model.safetensors")]
    return [
        *latents,
        ("model", folder / "run", [*sorted(run), folder / "run" / "config.json"]),
        ("model", folder / "export", export),
        ("index", folder / "media", [folder / "media" / index.INDEX_FILE]),
    ]


@pytest.mark.variants
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the memory of Linux processes")
def test_mutated_files_of_vaejax_are_read_unchanged_or_refused(tmp_path):
    seconds, seed = float(os.environ.get("FUZZ_SECONDS", 20)), int(os.environ.get("FUZZ_SEED", 0))
    draw, reader = random.Random(seed), Reader()
    kinds = intact(tmp_path)
    expected = {path: reader.read(kind, path, longest=60) for kind, path, _ in kinds}
    assert all(answer["error"] is None for answer in expected.values()), expected
    latents = {path.name for kind, path, _ in kinds if kind == "latent"}
    outcomes = {"read": 0, "refused": 0}
    end = time.monotonic() + seconds
    for number, (kind, path, files) in enumerate(itertools.cycle(kinds)):
        if time.monotonic() > end and number >= len(kinds):
            break
        file = draw.choice(files)
        whole = file.read_bytes()
        file.write_bytes(mutated(whole, draw))
        where = seed, number, str(file.relative_to(tmp_path))
        answer = reader.read(kind, path)
        file.write_bytes(whole)
        assert answer is not None, f"{where}: the reader crashed"
        assert "traceback" not in answer, f"{where}: {answer['traceback']}"
        if answer["error"] is None:
            # The values of latents and of checkpoints' arrays have no checksum, unlike those of the others.
            assert path.name in ("run", *latents) or answer["value"] == expected[path]["value"], where
        else:
            assert kind != "index" and "\n" not in answer["error"], f"{where}: {answer['error']}"
        outcomes["read" if answer["error"] is None else "refused"] += 1
        assert resident(reader.process) < LARGEST, where
    reader.close()
    print(outcomes)
    assert min(outcomes.values()) > 0
