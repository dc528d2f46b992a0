"""A run resumes with the networks of its checkpoint, and a rollback continues with new samples."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.small_run import BUCKET, small_config
from vaejax.errors import InputError
from vaejax.rundir.checkpoint import Checkpoints
from vaejax.rundir.folder import RunFolder
from vaejax.train import resume
from vaejax.train.guard import StepGuard
from vaejax.train.state import to_items


def as_saved(config):
    return json.loads(json.dumps(config.to_dict()))


@contextlib.contextmanager
def saved_run(folder, saved):
    """The checkpoints of a run that saved this configuration at step 4, and no networks."""
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(4, {"state": {"x": jnp.zeros(())}}, {}, saved, {})
        with checkpoints.completing():
            pass
        yield checkpoints


def test_foreign_missing_and_harmless_keys_do_not_matter(tmp_path):
    config = small_config("photos", **{"model.remat": (0,), "model.dtype": "bfloat16"})
    saved = as_saved(small_config("photos"))
    saved["model"]["of_a_later_version"] = 3
    saved["of_a_later_version"] = {"x": 1}
    del saved["model"]["latent_channels"], saved["data"]
    with saved_run(tmp_path, saved) as checkpoints:
        resume.check_networks(checkpoints, 4, config)


def test_a_network_that_differs_is_named_with_both_values(tmp_path):
    config = small_config("photos", **{"loss.weights.adversarial": 0.1})
    saved, without = as_saved(config), as_saved(small_config("photos"))
    for one in (saved, without):
        one["loss"]["adversarial"]["width"] = 1
    with (
        saved_run(tmp_path / "one", saved) as checkpoints,
        pytest.raises(
            InputError, match=r"^loss\.adversarial\.width = \d+, but the run in this workdir has 1;"
        ),
    ):
        resume.check_networks(checkpoints, 4, config)
    with saved_run(tmp_path / "two", without) as checkpoints:  # that run had no discriminators
        resume.check_networks(checkpoints, 4, config)


@pytest.mark.parametrize(("had", "has"), [(1.0, 0.0), (0.0, 1.0)])
def test_projections_neither_join_nor_leave_a_run(had, has, tmp_path):
    teaches = {"optim.train": ("decoder",), "teacher": "PATH"}
    saved, now = (small_config("photos", **teaches, **{"loss.weights.features": w}) for w in (had, has))
    message = rf"^loss\.weights\.features = {has}, but the run in this workdir has {'' if had else 'no '}proj"
    with saved_run(tmp_path, as_saved(saved)) as checkpoints:
        resume.check_networks(checkpoints, 4, saved)
        with pytest.raises(InputError, match=message):
            resume.check_networks(checkpoints, 4, now)


@pytest.mark.parametrize(("had", "has"), [(0.5, 0.0), (0.0, 0.5)])
def test_a_learned_token_neither_joins_nor_leaves_a_run(had, has, tmp_path):
    saved, now = (small_config("photos", **{"loss.latent.future": share}) for share in (had, has))
    other = small_config("photos", **{"loss.latent.blocks": 0.2})
    message = rf"^loss\.latent\.blocks = 0.0, loss\.latent\.future = {has}, but the run in this workdir has"
    with saved_run(tmp_path, as_saved(saved)) as checkpoints:
        resume.check_networks(checkpoints, 4, other if had else saved)
        with pytest.raises(InputError, match=message):
            resume.check_networks(checkpoints, 4, now)


def test_the_position_of_a_removed_bucket_is_kept_and_a_new_one_starts_at_its_first_sample(setup, tmp_path):
    guard = StepGuard(RunFolder(tmp_path), setup.config.recovery, 0)
    with Checkpoints(tmp_path) as checkpoints:
        items = to_items(setup.initialize())
        checkpoints.save(4, items, {"image_48x48": 12}, as_saved(setup.config), {})
        assert resume.restore(setup, checkpoints, guard, 4)[1] == {"image_48x48": 12, BUCKET: 0}


def test_positions_of_earlier_versions_are_batches_of_the_saved_configuration(setup, tmp_path):
    """A run with batches of 16 is resumed with batches of 8."""
    saved = as_saved(setup.config)
    saved["data"]["buckets"][BUCKET]["batch"] = 16
    rollback = {"step": 9, "back_to": 4, "positions": {BUCKET: 7}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, to_items(setup.initialize()), {}, saved, {})
        with checkpoints.completing():
            pass
        folder = tmp_path / "checkpoints" / "4"
        (folder / "data" / "metadata").write_text(json.dumps({BUCKET: 4}))
        (folder / "metadata" / "metadata").write_text(json.dumps({"step": 4}))  # without checksums
        guard = StepGuard(RunFolder(tmp_path), setup.config.recovery, 4)
        assert resume.restore(setup, checkpoints, guard, 4)[1] == {BUCKET: 4 * 16}
        RunFolder(tmp_path).bad_steps.write_text(json.dumps(rollback) + "\n")
        guard = StepGuard(RunFolder(tmp_path), setup.config.recovery, 4)
        assert resume.restore(setup, checkpoints, guard, 4)[1] == {BUCKET: 7 * 16}


def test_a_rollback_restores_the_checkpoint_and_the_positions_of_the_guard(setup, tmp_path):
    guard = StepGuard(RunFolder(tmp_path), setup.config.recovery, 0)
    with Checkpoints(tmp_path) as checkpoints:
        state, positions = resume.restore(setup, checkpoints, guard, 0)
        assert positions == {BUCKET: 0}
        trained = jax.tree.map(lambda x: x + 1, (state.params, state.step))
        items = to_items(state)
        items["state"] |= {"params": trained[0], "step": trained[1] + 3}
        checkpoints.save(4, items, {BUCKET: 4}, as_saved(setup.config), {})
        assert resume.restore(setup, checkpoints, guard, 4)[1] == {BUCKET: 4}
        guard.roll_back(8, 4, {BUCKET: 8})
        restored, positions = resume.restore(setup, checkpoints, guard, 4)
    assert positions == {BUCKET: 8} and restored.step == 4
    jax.tree.map(np.testing.assert_array_equal, restored.params, trained[0])
