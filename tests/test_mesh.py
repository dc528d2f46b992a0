import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from tests.models import SMALL
from vaejax import config, optim, train_state, train_step
from vaejax import mesh as sharding
from vaejax.errors import InputError
from vaejax.models.autoencoder import Architecture, Autoencoder
from vaejax.objective import Objective


def one_update(monkeypatch, devices: int, data: int, fsdp: int, space: int):
    """Terms, gradients and parameters after one update of an image and a video bucket on a mesh."""
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 1)
    sizes = (data, fsdp, space)
    grid = np.array(jax.devices()[:devices]).reshape(sizes)
    mesh = jax.sharding.Mesh(grid, sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    model, objective = Autoencoder(Architecture(**SMALL)), Objective("gaussian")
    settings = config.defaults().optim
    settings.update({"warmup": 0, "agc": 0.01})
    optimizer = optim.optimizer(settings, 10)
    state, shardings = train_state.create(model, optimizer, mesh, 0)
    gradients = jax.tree.map(jnp.zeros_like, state.params)
    key = jax.device_put(jax.random.key(1), sharding.replicated(mesh))
    rng, terms = np.random.default_rng(0), {}
    for shape in ((8, 1, 32, 16, 3), (8, 5, 16, 16, 3)):
        frames = sharding.global_frames(mesh, rng.integers(256, size=shape, dtype=np.uint8))
        step = functools.partial(train_step.bucket_gradients, weight=0.7, model=model, objective=objective)
        step = jax.jit(step, out_shardings=(shardings.params, None))
        gradients, terms[f"{shape[1]} frames"] = step(state, gradients, frames, key)
    update = functools.partial(
        train_step.apply_gradients, optimizer=optimizer, clipping=optim.clipping(settings), ema_decay=0.9
    )
    state, terms["all"] = jax.jit(update, out_shardings=(shardings, None))(state, gradients)
    return jax.device_get((terms, gradients)), state


@pytest.mark.parametrize("sizes", [(4, 2, 1), (2, 2, 2)], ids=["data 4 fsdp 2", "data 2 fsdp 2 space 2"])
def test_eight_devices_do_what_one_does(monkeypatch, sizes):
    expected, _ = one_update(monkeypatch, 1, 1, 1, 1)
    sharded, state = one_update(monkeypatch, 8, *sizes)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(sharded), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * max(1e-3, np.abs(b).max()), err_msg=name)
    kernel = state.params["autoencoder"]["encoder"]["conv_in"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 2  # each fsdp device holds half


def test_parameters_are_split_by_output_channel_first():
    assert sharding.parameter_spec((3, 3, 3, 64, 96), 8) == P(None, None, None, None, "fsdp")
    assert sharding.parameter_spec((3, 3, 3, 64, 97), 8) == P(None, None, None, "fsdp")
    assert sharding.parameter_spec((3, 3, 3, 63, 97), 8) == P()
    assert sharding.parameter_spec((64,), 8) == P()
    assert sharding.parameter_spec((3, 3, 3, 64, 96), 1) == P()


def test_the_mesh_takes_the_devices_that_are_left_or_says_what_it_accepts():
    assert dict(sharding.make(ConfigDict({"data": 0, "fsdp": 2, "space": 1})).shape) == {
        "data": 4,
        "fsdp": 2,
        "space": 1,
    }
    with pytest.raises(InputError, match=r"fsdp 3 .* the 8 devices .* product is 8"):
        sharding.make(ConfigDict({"data": 0, "fsdp": 3, "space": 1}))
