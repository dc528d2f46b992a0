"""A batch whose gradients are computed in pieces."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.support import losses
from tests.support.models import SMALLEST, architecture, random_parameters
from vaejax.config.schema import defaults
from vaejax.data.bucket import Bucket, parse_buckets
from vaejax.errors import InputError
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime.mesh import AXES, local_rows, placing_frames, shard_batch
from vaejax.train import optimizer as optim
from vaejax.train import state as states
from vaejax.train import step as steps


def gradients(pieces: int, frames: int, devices: int = 1):
    """The accumulated gradients, and the terms, of a batch of 8 samples whose posterior has no noise."""
    grid = np.array(jax.devices()[:devices]).reshape(devices // 2 or 1, min(devices, 2), 1)
    mesh = jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    model = Autoencoder(architecture(**SMALLEST))
    adversary = losses.adversary(("image", "video"), frames=frames) if frames > 1 else None
    objective = losses.objective({"reconstruction": 1.0, "kl": 1e-3, "adversarial": 0.5})
    state = states.create(model, optim.optimizer(defaults().optim, 10), adversary, mesh, 0)
    clip = jax.ShapeDtypeStruct(model.architecture.example_shape, jnp.float32)
    flat = flatten_dict(random_parameters(model, clip, jax.random.key(0)))
    bias = ("encoder", "conv_out", "bias")
    flat[bias] = flat[bias].at[model.architecture.latent_channels :].set(-100.0)  # the log-variances
    state = dataclasses.replace(state, params=state.params | {"autoencoder": unflatten_dict(flat)})
    x = np.random.default_rng(0).integers(256, size=(8, frames, 16, 16, 3), dtype=np.uint8)
    step = functools.partial(
        steps.batch_gradients,
        networks={},
        weight=0.7,
        pieces=pieces,
        model=model,
        objective=objective,
        adversary=adversary,
    )
    with placing_frames(mesh):
        add = jax.jit(lambda state, x, key: step(state, steps.zeros(state, adversary), x, key))
        return jax.device_get(add(state, shard_batch(mesh, x), jax.random.key(1)))


def check_equal(found, expected):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * max(1e-3, np.abs(b).max()), err_msg=name)


def test_pieces_have_the_gradients_of_the_whole_batch():
    whole = gradients(1, frames=1)
    assert np.abs(whole[0].generator["autoencoder"]["encoder"]["conv_in"]["kernel"]).max() > 1e-4
    check_equal(gradients(4, frames=1), whole)


@pytest.mark.variants
def test_pieces_on_four_devices_have_the_gradients_of_one():
    check_equal(gradients(2, frames=3, devices=4), gradients(1, frames=3))


def test_a_piece_must_divide_the_batch_and_be_divided_by_the_mesh():
    def parsed(**fields):
        (bucket,) = parse_buckets({"image_64x64": fields}, 8, 4, shards=2)
        return bucket

    assert parsed(batch=8).at_once == 8
    assert parsed(batch=8, micro=4).at_once == 4
    for micro in (3, 16, 1, -2, 2.0):
        message = r"image_64x64\.micro = .* a divisor of batch = 8 that is a multiple of .* = 2"
        with pytest.raises(InputError, match=message):
            parsed(batch=8, micro=micro)


def test_pieces_of_few_samples_are_split_by_height():
    """The batch has a sample for each of four devices, its pieces have not."""
    grid = np.array(jax.devices()[:4]).reshape(1, 2, 2)
    mesh = jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    bucket = Bucket(1, 64, 64, batch=4, micro=2)
    assert local_rows(mesh, bucket.batch, bucket.at_once) == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"H = 40 with micro = 2; accepted: an H that is a multiple of 8 x"):
        parse_buckets({"image_40x64": {"batch": 4, "micro": 2}}, 8, 4, shards=2, space=2)
