"""The sharding of every parameter, and the memory of a device."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from tests.support.models import architecture, clip
from vaejax.configs import joint
from vaejax.data.bucket import Bucket
from vaejax.losses.adversarial import Adversary
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.families import architecture_of
from vaejax.runtime.mesh import AXES, device_bytes, frames_sharding, make_mesh, placing_frames, replicate
from vaejax.train import optimizer as optim
from vaejax.train import state as train_state

GOLDEN = pathlib.Path(__file__).parent / "flagship_on_16x16.txt"


def flagship(data, fsdp):
    """The shapes and shardings of its state, with discriminators."""
    mesh = AbstractMesh((data, fsdp, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    config = joint.get_config()
    model = Autoencoder(architecture_of(config.model))
    adversary = Adversary.of(config, [Bucket(1, 64, 64, 1), Bucket(5, 64, 64, 1)])
    return train_state.shapes(model, optim.optimizer(config.optim, config.steps), adversary, mesh)


def lines(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        yield f"{name} {leaf.dtype}{list(leaf.shape)} {tuple(leaf.sharding.spec)}"


def test_every_parameter_of_the_flagship_is_sharded_as_in_the_golden_file():
    state = flagship(16, 16)
    parameters = {
        "params": state.params,
        "opponents": {n: one.params for n, one in state.discriminators.items()},
    }
    assert list(lines(parameters)) == GOLDEN.read_text().splitlines()
    # EMA and moments are sharded like their parameters.
    for tree in (state.ema, optax.tree.get(state.optimizer, "mu"), optax.tree.get(state.optimizer, "nu")):
        assert list(lines(tree)) == list(lines(state.params))
    for one in state.discriminators.values():
        assert list(lines(optax.tree.get(one.optimizer, "mu"))) == list(lines(one.params))


def test_fsdp_divides_the_state_evenly_among_devices():
    shares = [device_bytes(flagship(1, fsdp)) for fsdp in (1, 2, 4, 8)]
    for share, fsdp in zip(shares, (1, 2, 4, 8), strict=True):
        assert share * fsdp == pytest.approx(shares[0], rel=0.01)  # small leaves are replicated


@pytest.mark.variants
def test_two_devices_share_the_activations_of_a_clip():
    """17 x 256 x 256, split by height: two thirds of the memory at most, and the same gradients."""
    model, x = Autoencoder(architecture(widths=(32, 64), stem_factor=2)), clip(17, 256, 256)
    key = jax.random.key(0)
    params = jax.jit(model.init)(key, clip(5, 32, 32), key)

    def gradients(devices):
        mesh = make_mesh(ConfigDict({"data": 1, "fsdp": 1, "space": devices}), jax.devices()[:devices])

        def loss(params, x):
            with placing_frames(mesh):
                return jnp.square(model.apply(params, x, key)[0] - x).mean()

        arguments = replicate(mesh, params), jax.device_put(x, frames_sharding(mesh, 1))
        program = jax.jit(jax.grad(loss)).lower(*arguments).compile()
        return program.memory_analysis().temp_size_in_bytes, jax.device_get(program(*arguments))

    (whole, expected), (half, found) = gradients(1), gradients(2)
    print(
        f"activations of a clip: {whole:,} bytes on one device, {half:,} on each of two, {half / whole:.3f}"
    )
    assert half <= 0.65 * whole
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
