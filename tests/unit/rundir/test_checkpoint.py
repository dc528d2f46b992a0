"""Which checkpoints stay, and what is left of one that was not completed."""

import jax
import jax.numpy as jnp
import optax
import pytest
from ml_collections import ConfigDict

from vaejax.rundir.checkpoint import Checkpoints
from vaejax.runtime import mesh as sharding
from vaejax.train.state import TrainState


@pytest.fixture(scope="module")
def state():
    mesh = sharding.make(ConfigDict({"data": 8, "fsdp": 1, "space": 1}))
    params = {"autoencoder": {"kernel": jnp.ones((8, 8))}}
    state = TrainState(jnp.zeros((), jnp.int32), params, params, optax.adam(1e-3).init(params), {})
    return jax.device_put(state, sharding.state_shardings(mesh, state))


def there(folder):
    return {path.name for path in (folder / "checkpoints").iterdir()}


@pytest.mark.parametrize(("best", "stays"), [("mean/psnr", "2"), ("-mean/psnr", "1"), ("", None)])
def test_the_best_checkpoint_stays_when_the_run_goes_on_another_day(tmp_path, state, best, stays):
    for steps in ({1: 25.0, 2: 30.0, 3: 28.0}, {4: 27.0, 5: None, 6: 26.0}):
        with Checkpoints(tmp_path, keep=1, best=best) as checkpoints:
            for step, psnr in steps.items():
                checkpoints.save(state, step, {}, {}, {"mean/psnr": psnr} if psnr else {})
    assert there(tmp_path) == {"6"} | ({stays} if stays else set())


def test_what_a_kill_leaves_of_a_save_goes_before_the_next_one(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 1, {}, {}, {})
    (torn,) = (tmp_path / "checkpoints").iterdir()
    torn = torn.with_name("7.orbax-checkpoint-tmp")
    (torn / "state").mkdir(parents=True)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest() == 1
    assert there(tmp_path) == {"1", torn.name}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(state, 2, {}, {}, {})
    assert there(tmp_path) == {"2"}
