"""A widened model encodes and reconstructs the old channels as before, whatever the new ones hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import SMALLEST, architecture, randomized
from vaejax.codec.load import parameter_shapes
from vaejax.models import surgery
from vaejax.models.autoencoder import Autoencoder


def both(channels=4, **options):
    """A model of RGB, the widened model, and the parameters of each."""
    old, params = randomized(**(SMALLEST | options))
    params = jax.tree.map(np.asarray, params)
    new = old.architecture.replace(pixel_channels=channels)
    return (
        old,
        params,
        Autoencoder(new),
        surgery.widened(params, parameter_shapes(new), old.architecture, new),
    )


def encoded(model, params, x):
    return jax.jit(lambda x: model.apply({"params": params}, x, method="encode"))(x)


def decoded(model, params, z):
    return jax.jit(lambda z: model.apply({"params": params}, z, z.shape[1] > 1, method="decode"))(z)


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (4, {}),
        (6, {"stem_factor": 1, "spatial_factor": 4}),
        (4, {"stem": "patch"}),
        (4, {"conv": "groupnorm", "film": True, "attention": True, "temporal_factor": 1}),
    ],
)
@pytest.mark.parametrize("frames", [1, 5])
def test_latents_and_the_old_channels_stay_as_they_are(channels, options, frames):
    old, params, new, wider = both(channels, **options)
    x = jax.random.uniform(jax.random.key(1), (2, frames, 16, 24, channels), minval=-1)
    before, after = encoded(old, params, x[..., :3]), encoded(new, wider, x)
    np.testing.assert_allclose(after.mean, before.mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(after.log_variance, before.log_variance, rtol=0, atol=1e-6)
    x_hat, wide = decoded(old, params, before.mean), decoded(new, wider, before.mean)
    np.testing.assert_allclose(wide[..., :3], x_hat, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(wide[..., 3:], 0)
    assert np.abs(x_hat).max() > 0.1  # there is something to keep


def test_the_new_channels_learn_from_the_first_step_on():
    _, _, new, wider = both()
    x = jax.random.uniform(jax.random.key(1), (1, 3, 16, 16, 4), minval=-1)

    def error(params):
        z = new.apply({"params": params}, x, method="encode").mean
        return jnp.square(new.apply({"params": params}, z, True, method="decode") - x).mean()

    gradients = jax.tree.map(np.asarray, jax.jit(jax.grad(error))(wider))
    encoder, decoder = (gradients[half]["linear"]["conv"]["kernel"] for half in ("encoder", "decoder"))
    assert np.all(encoder[..., 3, :] != 0)
    assert np.all(decoder.reshape(*decoder.shape[:-1], -1, 4)[..., 3] != 0)


def test_pixels_as_channels_of_pytorch_have_the_channel_slowest():
    """PyTorch's pixel_unshuffle orders them (channel, position), and so does a convolution of them."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 4, 8, 8)), rng.normal(size=(3, 3, 3 * 4, 5))

    def convolved(x, kernel):
        pixels = torch.nn.functional.pixel_unshuffle(torch.tensor(x), 2)
        return torch.nn.functional.conv2d(pixels, torch.tensor(kernel.transpose(3, 2, 0, 1).copy()))

    wider = surgery.with_channels(kernel, np.empty((3, 3, 4 * 4, 5)), 3, 4, channels_fastest=False)
    np.testing.assert_allclose(convolved(x, wider), convolved(x[:, :3], kernel), atol=1e-12)
    bias = rng.normal(size=12)
    wider = surgery.with_channels(bias, np.empty(16), 3, 4, channels_fastest=False)
    shuffled = torch.nn.functional.pixel_shuffle(torch.tensor(wider)[:, None, None], 2)
    wanted = torch.nn.functional.pixel_shuffle(torch.tensor(bias)[:, None, None], 2)
    np.testing.assert_array_equal(shuffled[:3], wanted)
    np.testing.assert_array_equal(shuffled[3], 0)


def test_arrays_that_differ_otherwise_are_refused():
    with pytest.raises(ValueError, match=r"shape \(5, 12\) cannot become \(5, 18\)"):
        surgery.with_channels(np.zeros((5, 12)), np.zeros((5, 18)), 3, 4, channels_fastest=True)
    assert architecture(**SMALLEST).encoder.channels_fastest
