"""Which checkpoints are kept, and the remains of an unfinished save."""

import jax
import jax.numpy as jnp
import optax
import pytest
from ml_collections import ConfigDict

from vaejax.rundir.checkpoint import Checkpoints, SavedCheckpoints
from vaejax.runtime.mesh import make_mesh, state_shardings
from vaejax.train.state import TrainState, to_items


@pytest.fixture(scope="module")
def items():
    mesh = make_mesh(ConfigDict({"data": 8, "fsdp": 1, "space": 1}))
    params = {"autoencoder": {"kernel": jnp.ones((8, 8))}}
    state = TrainState(jnp.zeros((), jnp.int32), params, params, optax.adam(1e-3).init(params), {})
    return to_items(jax.device_put(state, state_shardings(mesh, state)))


def saved(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


@pytest.mark.parametrize(("best", "kept"), [("mean/psnr", "2"), ("-mean/psnr", "1"), ("", None)])
def test_the_best_checkpoint_is_kept_when_the_run_is_resumed(tmp_path, items, best, kept):
    for steps in ({1: 25.0, 2: 30.0, 3: 28.0}, {4: 27.0, 5: None, 6: 26.0}):
        with Checkpoints(tmp_path, keep=1, best=best) as checkpoints:
            for step, psnr in steps.items():
                checkpoints.save(step, items, {}, {}, {"mean/psnr": psnr} if psnr else {})
    assert saved(tmp_path) == {"6"} | ({kept} if kept else set())


def test_the_remains_of_a_killed_save_are_removed_before_the_next_one(tmp_path, items):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, items, {}, {}, {})
    (torn,) = (tmp_path / "checkpoints").iterdir()
    torn = torn.with_name("7.orbax-checkpoint-tmp")
    (torn / "state").mkdir(parents=True)
    assert SavedCheckpoints(tmp_path).latest() == 1
    assert saved(tmp_path) == {"1", torn.name}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, items, {}, {}, {})
    assert saved(tmp_path) == {"2"}
