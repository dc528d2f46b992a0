"""A run on RGB becomes one on RGB and alpha."""

import json

import numpy as np
import pytest

import vaejax
from tests.support import cutouts, media_files
from tests.support.small_run import BUCKET, small_config
from vaejax.rundir.folder import RunFolder
from vaejax.train.loop import fit

pytestmark = pytest.mark.runs


def evaluations(workdir, name):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {m["step"]: m[name] for m in lines if m["split"] == "eval" and m["bucket"] == BUCKET and name in m}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run on RGB, 'rgb', and a run on RGBA that starts from it, 'rgba'."""
    root = tmp_path_factory.mktemp("rgba")
    for name, writer in (("opaque", media_files), ("cutouts", cutouts)):
        (root / name).mkdir()
        writer.write_photos(root / name, 24)
    shared = {"data.holdout": 0.3, "eval.latent_samples": 8, "optim.warmup": 5, "checkpoint.keep": 1}
    fit(small_config(root / "opaque", steps=12, **shared).to_dict(), str(root / "rgb"))
    start = {"init": str(root / "rgb"), "model.pixel_channels": 4, "model.family": ""}
    fit(small_config(root / "cutouts", steps=60, **shared, **start).to_dict(), str(root / "rgba"))
    return root


def test_the_widened_model_reconstructs_as_before_whatever_the_alpha(runs):
    old, new = vaejax.load(str(runs / "rgb")), vaejax.load(str(RunFolder(str(runs / "rgba")).init))
    rng = np.random.default_rng(0)
    rgba = rng.uniform(-1, 1, (2, 3, 32, 48, 4)).astype(np.float32)
    z, wide = (codec.encode(x, normalize=False).values for codec, x in ((old, rgba[..., :3]), (new, rgba)))
    np.testing.assert_allclose(wide, z, rtol=0, atol=1e-6)
    options = {"dtype": "float32", "normalized": False}
    x, x_hat = old.decode(z, **options), new.decode(wide, **options)
    np.testing.assert_allclose(x_hat[..., :3], x, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(x_hat[..., 3], 0)


def test_alpha_is_learned_within_some_updates(runs):
    alpha, rgb = (evaluations(runs / "rgba", f"psnr_{part}") for part in ("alpha", "rgb"))
    assert alpha[60] > alpha[0] + 6
    assert rgb[60] > rgb[0] - 1
