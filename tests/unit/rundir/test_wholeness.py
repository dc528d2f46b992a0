"""A damaged checkpoint is found by every reader, and an earlier one takes its place."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.support import codec_run
from vaejax.codec.load import load_vae
from vaejax.errors import InputError
from vaejax.rundir import wholeness
from vaejax.rundir.checkpoint import Checkpoints, SavedCheckpoints
from vaejax.rundir.wholeness import DamagedCheckpoint
from vaejax.runtime.mesh import make_mesh


def largest(folder):
    """The largest file with arrays of the state."""
    return max((folder / "state").glob("**/d/*"), key=lambda path: path.stat().st_size)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def flip(path, *positions):
    data = bytearray(path.read_bytes())
    for at in positions or range(0, len(data), 500):
        data[at] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "no files": empty,
    "no arrays": lambda folder: shutil.rmtree(folder / "state"),
    "no array files": lambda folder: [shutil.rmtree(d) for d in (folder / "state").glob("**/d")],
    "no discriminator": lambda folder: shutil.rmtree(folder / "discriminator_image"),
    "truncated arrays": lambda folder: os.truncate(largest(folder), largest(folder).stat().st_size // 2),
    "empty arrays": lambda folder: os.truncate(largest(folder), 0),
    "a flipped bit": lambda folder: flip(largest(folder), largest(folder).stat().st_size // 2),
    "many flipped bits": lambda folder: [flip(path) for path in (folder / "state").glob("**/d/*")],
    "an empty manifest": lambda folder: os.truncate(folder / "state" / "manifest.ocdbt", 0),
    "broken tree metadata": lambda folder: os.truncate(folder / "state" / "_METADATA", 99),
    "broken scores": lambda folder: (folder / "metrics" / "metrics").write_text('{"mean/psnr": '),
    "broken configuration": lambda folder: (folder / "config" / "metadata").write_bytes(b"\xff\xfe"),
    "another position": lambda folder: (folder / "data" / "metadata").write_text(
        '{"samples": {"image_32x32": 99}}'
    ),
    "broken metadata": lambda folder: (folder / "_CHECKPOINT_METADATA").write_text("[]"),
}
STATE = {"w": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32), "step": np.int32(0)}
OFTEN = ("no files", "truncated arrays", "a flipped bit")  # the others are variants
POSITIONS = {"image_32x32": 8}


def items(step):
    return {
        "state": jax.tree.map(lambda x: jnp.asarray(x + x.dtype.type(step)), STATE),
        "discriminator_image": {"w": jnp.full((3,), float(step))},
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints 1 to 3; the third is the best."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, keep=3, best="mean/psnr") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, items(step), POSITIONS, {"model": {}}, {"mean/psnr": 20.0 + step})
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def resumed(run):
    """Restores the newest whole checkpoint as a run with other settings does, and saves the next."""
    with Checkpoints(run, keep=1, best="mean/psnr") as checkpoints:

        def use(step):
            checkpoints.config(step)
            return step, *checkpoints.restore(step, items(0))

        step, restored, positions = checkpoints.newest_whole(use)
        checkpoints.save(4, items(4), POSITIONS, {"model": {}}, {"mean/psnr": 20.0})
    return step, restored, positions


@pytest.mark.parametrize(
    "damage",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.variants) for name in DAMAGES],
)
def test_a_damaged_checkpoint_is_moved_aside_and_not_counted(run, capfd, damage):
    DAMAGES[damage](run / "checkpoints" / "3")
    before = sorted(path.relative_to(run / "checkpoints") for path in (run / "checkpoints" / "3").rglob("*"))
    step, restored, positions = resumed(run)
    assert step == 2 and positions == POSITIONS
    jax.tree.map(np.testing.assert_array_equal, restored, items(2))
    assert names(run / "checkpoints") == ["2", "4"]  # the best one that is left, and the latest
    assert sorted(path.relative_to(run / "damaged") for path in (run / "damaged" / "3").rglob("*")) == before
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{run}/checkpoints/3: damaged checkpoint (")
    assert line.endswith(f"); moved to {run}/damaged/3")


def test_a_whole_checkpoint_stays_in_its_place(run, capfd):
    assert resumed(run)[0] == 3
    assert names(run) == ["checkpoints"] and not capfd.readouterr().err


def test_older_checkpoints_are_tried_until_the_last_which_stays(run, capfd):
    for step in ("1", "2", "3"):
        DAMAGES["a flipped bit"](run / "checkpoints" / step)
    for _ in range(2):
        message = "checkpoints/1: damaged checkpoint .*, and no other is left; accepted: another --workdir"
        with pytest.raises(InputError, match=message):
            resumed(run)
    assert names(run / "checkpoints") == ["1"] and names(run / "damaged") == ["2", "3"]


@pytest.mark.variants
def test_two_damaged_checkpoints_of_one_step_are_both_kept(run):
    for _ in range(2):
        DAMAGES["truncated arrays"](run / "checkpoints" / "3")
        resumed(run)
        (run / "checkpoints" / "4").rename(run / "checkpoints" / "3")
    assert names(run / "damaged") == ["3", "3-1"]


def test_another_network_or_a_failing_disk_is_no_damage(run, monkeypatch):
    with Checkpoints(run) as checkpoints, pytest.raises(ValueError, match="shape"):
        checkpoints.newest_whole(lambda step: checkpoints.restore(step, {"state": {"w": jnp.zeros((2, 2))}}))

    def fail(*_, **__):
        raise ValueError("INTERNAL: Error reading file [OS error 5: EIO Input/output error]")

    monkeypatch.setattr(wholeness.ocp.StandardCheckpointHandler, "restore", fail)
    monkeypatch.setattr(wholeness.ocp.PyTreeCheckpointHandler, "restore", fail)
    with Checkpoints(run) as checkpoints, pytest.raises(ValueError, match="Input/output error"):
        checkpoints.newest_whole(lambda step: checkpoints.restore(step, items(0)))
    assert names(run / "checkpoints") == ["1", "2", "3"]


def test_a_reader_moves_nothing(run, capfd):
    DAMAGES["a flipped bit"](run / "checkpoints" / "3")
    for _ in range(2):  # as the check of --config.init and its use
        checkpoints = SavedCheckpoints(run)
        restored, _ = checkpoints.newest_whole(lambda step, c=checkpoints: c.restore(step, items(0)))
        jax.tree.map(np.testing.assert_array_equal, restored, items(2))
    assert names(run) == ["checkpoints"] and names(run / "checkpoints") == ["1", "2", "3"]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{run}/checkpoints/3: damaged checkpoint (state/w has changed")


def test_sums_do_not_depend_on_the_mesh_and_checkpoints_without_them_load(run, monkeypatch):
    mesh = make_mesh(ConfigDict({"data": 1, "fsdp": 8, "space": 1}))
    split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*s)) for s in (("fsdp",), ()))
    target = jax.device_put(items(0)["state"], {"w": split, "step": whole})
    checkpoints = SavedCheckpoints(run)
    restored, _ = checkpoints.restore(3, {"state": target})
    np.testing.assert_array_equal(restored["state"]["w"], items(3)["state"]["w"])
    by_numpy = int(np.asarray(items(3)["state"]["w"]).view(np.uint32).astype(np.uint64).sum() % 2**32)
    assert wholeness.of_arrays(restored)["state/w"] == by_numpy
    path = run / "checkpoints" / "3" / "metadata" / "metadata"
    path.write_text(json.dumps({"vaejax": "0.1.0", "step": 3}))
    DAMAGES["another position"](run / "checkpoints" / "3")
    assert checkpoints.restore(3, {"state": target})[1] == {"image_32x32": 99}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return codec_run.write(tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize(
    "damage",
    [
        "truncated arrays",
        *(pytest.param(name, marks=pytest.mark.variants) for name in ("no files", "another position")),
        "many flipped bits",
    ],
)
def test_the_codec_reads_the_newest_whole_checkpoint(trained, tmp_path, capfd, damage):
    run = shutil.copytree(trained, tmp_path / "run")
    expected = load_vae(str(run), codec_run.OLD)
    DAMAGES[damage](run / "checkpoints" / "7")
    before = names(run / "checkpoints")
    found = load_vae(str(run))
    assert (found.step, found.fingerprint) == (codec_run.OLD, expected.fingerprint)
    np.testing.assert_array_equal(found.mean, expected.mean)
    assert names(run / "checkpoints") == before and not (run / "damaged").exists()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"{run}/checkpoints/7: damaged checkpoint (")
    for name, step in ((run, 7), (run / "checkpoints" / "7", None)):
        with pytest.raises(DamagedCheckpoint, match=r"checkpoints/7: damaged .*; accepted: an undamaged"):
            load_vae(str(name), step)
