import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.runs  # takes 15 minutes
def test_the_demo_beats_the_best_linear_codec(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run(
        [sys.executable, "-m", "vaejax.main", "--config=configs/demo.py", f"--workdir={tmp_path}"],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        check=True,
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {m["bucket"]: m for m in lines if m["split"] == "eval"}
    assert scores["video_9x64x64"]["psnr"] >= scores["video_9x64x64"]["psnr_linear"]
    assert scores["image_64x64"]["psnr"] >= scores["image_64x64"]["psnr_linear"] - 1
