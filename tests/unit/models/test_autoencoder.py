import functools
import itertools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import SMALL, architecture, clip, randomized
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.blocks import Film
from vaejax.models.constraints import Placement, placing
from vaejax.models.conv import CausalConv, general_path
from vaejax.models.dct_init import LATENT_SCALE, low_frequencies
from vaejax.models.norm import PixelNorm
from vaejax.models.vaejax import SIZES
from vaejax.models.wan_blocks import DoublingConv, RmsNorm

# The options that claim causality, static images and exact streams. The default suite tests one combination;
# marked tests show which option broke it. FiLM claims causality and exact streams only.
EACH = {
    "groupnorm": {"conv": "groupnorm"},
    "pixel norm": {"pixel_norm": True},
    "attention": {"attention": True},
    "patch stem of 4": {"stem": "patch", "stem_factor": 4},
    "4x space": {"spatial_factor": 4},
    "16x space": {"spatial_factor": 16},
    "1x time": {"temporal_factor": 1},
    "2x time": {"temporal_factor": 2},
    "8x time": {"temporal_factor": 8},
    "recomputed": {"remat": (0, 1, 2)},
}
TOGETHER = ("groupnorm", "pixel norm", "attention", "patch stem of 4", "2x time", "recomputed")
DEEP = ("groupnorm", "attention", "16x space", "8x time")
OPTIONS = [
    pytest.param({}, id="default"),
    pytest.param({k: v for name in TOGETHER for k, v in EACH[name].items()}, id="together"),
    pytest.param(
        {k: v for name in DEEP for k, v in EACH[name].items()}, id="deep", marks=pytest.mark.variants
    ),
    *(pytest.param(options, id=name, marks=pytest.mark.variants) for name, options in EACH.items()),
]
CAUSAL = [*OPTIONS, pytest.param({"film": True}, id="film", marks=pytest.mark.variants)]


def functions(model, params):
    encode = jax.jit(lambda x: model.apply({"params": params}, x, method="encode").mean)
    decode = jax.jit(lambda z: model.apply({"params": params}, z, method="decode"))
    return encode, decode


@pytest.mark.parametrize("options", OPTIONS)
def test_an_image_is_a_static_video(options):
    model, params = randomized(**options)
    encode, decode = functions(model, params)
    t = model.architecture.temporal_factor
    image = clip(1)
    of_image = encode(image)
    of_video = encode(jnp.repeat(image, 1 + 2 * t, axis=1))
    assert of_video.shape[1] == 3
    scale = np.abs(of_image).max()
    np.testing.assert_allclose(of_video / scale, np.repeat(of_image, 3, axis=1) / scale, atol=1e-5)

    latent = jnp.concatenate([of_image, jax.random.normal(jax.random.key(5), of_image.shape)], axis=1)
    of_latent, of_sequence = decode(of_image), decode(latent)
    assert of_sequence.shape[1] == 1 + t
    scale = np.abs(of_latent).max()
    np.testing.assert_allclose(of_sequence[:, :1] / scale, of_latent / scale, atol=1e-5)


def test_the_image_path_has_the_gradients_of_the_general_path():
    model, params = randomized()
    x = clip(1)

    def gradients():
        def loss(params, x):
            x_hat, posterior = model.apply({"params": params}, x, jax.random.key(3))
            return jnp.sum(jnp.square(x_hat - 0.3)) + jnp.sum(posterior.kl())

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)

    of_image_path = gradients()
    with general_path():
        of_general_path = gradients()
    for a, b in zip(jax.tree.leaves(of_image_path), jax.tree.leaves(of_general_path), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1e-3, np.abs(b).max()), rtol=1e-4)


def test_the_image_path_does_at_most_0_4_of_the_work():
    model = Autoencoder(architecture(size="tiny"))
    x, key = jax.ShapeDtypeStruct((1, 1, 64, 64, 3), jnp.float32), jax.random.key(0)
    params = jax.eval_shape(model.init, key, jnp.zeros((1, 5, 32, 32, 3)), key)

    def flops():
        def loss(params, x):
            return jnp.sum(model.apply(params, x, key)[0])

        # As an accelerator would get it: a CPU's program has loops, whose bodies are counted once.
        traced = jax.jit(jax.grad(loss)).trace(params, x)
        return traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]

    image = flops()
    with general_path():
        assert image <= 0.4 * flops()


@pytest.mark.parametrize("options", CAUSAL)
def test_no_latent_sees_a_later_frame_and_no_frame_a_later_latent(options):
    model, params = randomized(**options)
    t = model.architecture.temporal_factor
    x = clip(1 + 2 * t)
    z = functions(model, params)[0](x)

    def moments(x):
        posterior = model.apply({"params": params}, x, method="encode")
        return jnp.concatenate([posterior.mean, posterior.log_variance], axis=-1)

    def reach(function, at):
        """seen[j, i]: whether an output frame up to j has a gradient from input frame i."""
        out = jax.eval_shape(function, at)
        weights = jax.random.normal(jax.random.key(9), out.shape)
        gradient = jax.jit(
            jax.grad(lambda v, mask: jnp.sum(function(v) * weights * mask[:, None, None, None]))
        )
        masks = np.tri(out.shape[1], dtype=np.float32)
        return np.stack([np.abs(gradient(at, mask)).max(axis=(0, 2, 3, 4)) > 0 for mask in masks])

    frame, latent = np.arange(1 + 2 * t), np.arange(3)
    np.testing.assert_array_equal(reach(moments, x), frame <= t * latent[:, None])
    seen = reach(lambda z: model.apply({"params": params}, z, method="decode"), z)
    np.testing.assert_array_equal(seen, latent <= -(-frame[:, None] // t))


@pytest.mark.parametrize("options", CAUSAL)
def test_a_stream_in_chunks_is_the_whole_clip(options):
    model, params = randomized(**options)
    t = model.architecture.temporal_factor
    x = clip(1 + 4 * t)
    encode, decode = functions(model, params)
    whole = encode(x)

    @functools.partial(jax.jit, static_argnums=2)
    def apply(variables, chunk, method):
        return model.apply(variables, chunk, True, method=method, mutable="cache")

    def streamed(sequence, bounds, method):
        cache, chunks = {}, []
        for start, stop in itertools.pairwise(bounds):
            chunk, cache = apply({"params": params, **cache}, sequence[:, start:stop], method)
            chunks.append(chunk.mean if method == "encode" else chunk)
        return jnp.concatenate(chunks, axis=1)

    latents = streamed(x, (0, 1, 1 + 2 * t, 1 + 3 * t, 1 + 4 * t), "encode")
    np.testing.assert_allclose(latents, whole, atol=2e-5 * np.abs(whole).max())
    frames = decode(whole)
    np.testing.assert_allclose(
        streamed(whole, (0, 1, 2, 5), "decode"), frames, atol=2e-5 * np.abs(frames).max()
    )


@pytest.mark.parametrize("levels", [(0, 2), pytest.param((0, 1, 2), marks=pytest.mark.variants)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default", marks=pytest.mark.variants),
        pytest.param(
            {"conv": "groupnorm", "film": True, "pixel_norm": True, "attention": True},
            id="all else",
            marks=pytest.mark.variants,
        ),
    ],
)
def test_recomputation_and_the_first_frame_apart_change_no_gradient(options, levels):
    x = clip(5)

    def gradient(**more):
        model, params = randomized(encoder_blocks=2, **options, **more)

        def loss(params):
            return jnp.sum(jnp.square(model.apply({"params": params}, x, jax.random.key(1))[0]))

        return jax.jit(jax.grad(loss))(params)

    expected, recomputed = gradient(), gradient(remat=levels)
    with placing(Placement(on_tpu=True)):
        apart = gradient(remat=levels)
    for found in (recomputed, apart):
        assert jax.tree.structure(found) == jax.tree.structure(expected)  # checkpoints do not depend on it
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=min(1e-4, 1e-5 * np.abs(b).max()))


def test_on_a_tpu_a_clip_passes_as_its_first_frame_and_the_rest():
    """No activation of the decoder has 5 frames: they would fill 8 of a TPU's rows, but 4 fill 4."""
    model, params = randomized()
    z = model.apply({"params": params}, clip(5), method="encode").mean
    whole = functions(model, params)[1](z)
    with placing(Placement(on_tpu=True)):
        traced = jax.jit(lambda z: model.apply({"params": params}, z, method="decode")).trace(z)
    frames = {shape[1] for shape in _shapes(traced.jaxpr.jaxpr) if len(shape) == 5 and shape[-1] > 3}
    assert 4 in frames and 5 not in frames
    scale = np.abs(whole).max()
    np.testing.assert_allclose(traced.lower().compile()(z) / scale, whole / scale, atol=1e-5)


def _shapes(jaxpr):
    """The shapes of all arrays that a program computes, also in the functions that it calls."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _shapes(inner)


def test_film_tells_images_from_videos():
    model, params = randomized(film=True)
    encode = jax.jit(functools.partial(model.apply, {"params": params}, method="encode"), static_argnums=1)
    of_image, of_video = (encode(clip(1), is_video).mean for is_video in (False, True))
    assert np.abs(of_image - of_video).max() > 1e-3


def test_bfloat16_is_near_float32():
    _, params = randomized()
    x = clip(5)
    outs = []
    for dtype in ("float32", "bfloat16"):
        model, _ = randomized(dtype=dtype)
        encode, decode = functions(model, params)
        outs.append(decode(encode(x)))
    assert outs[1].dtype == jnp.float32
    error = np.sqrt(np.mean(np.square(outs[0] - outs[1]))) / np.sqrt(np.mean(np.square(outs[0])))
    assert 1e-6 < error < 0.03


@pytest.mark.parametrize(
    "layer",
    [
        CausalConv(4, dtype=jnp.bfloat16),
        Film(dtype=jnp.bfloat16),
        PixelNorm(dtype=jnp.bfloat16),
        RmsNorm(dtype=jnp.bfloat16),
        DoublingConv(4, dtype=jnp.bfloat16),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_gradients_of_biases_and_scales_are_not_summed_in_bfloat16(layer):
    """They are sums over all pixels; summed in bfloat16, they were wrong by 9%."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 5, 64, 64, 4)), jnp.bfloat16)
    more = (True,) if isinstance(layer, Film) else ()
    params = layer.init(jax.random.key(0), x[:, :2, :8, :8], *more)["params"]
    shape = jax.eval_shape(lambda: layer.apply({"params": params}, x, *more)).shape
    dy = jnp.asarray(rng.standard_normal(shape) + 0.05, jnp.bfloat16)

    def gradients(layer, x, dy):
        def loss(params):
            return jnp.sum(layer.apply({"params": params}, x, *more).astype(dy.dtype) * dy)

        return jax.jit(jax.grad(loss))(params)

    found = gradients(layer, x, dy.astype(jnp.float32))
    exact = gradients(layer.clone(dtype=jnp.float32), x.astype(jnp.float32), dy.astype(jnp.float32))
    for name in found.keys() & {"bias", "scale", "modality"}:
        error = np.abs(found[name] - exact[name]).max() / np.abs(exact[name]).max()
        assert error < 0.01, (name, error)


def test_an_untrained_autoencoder_is_a_cosine_transform_codec():
    model = Autoencoder(architecture(**SMALL | {"latent_channels": 16}))
    x, key = clip(1, 32, 32), jax.random.key(0)
    params = jax.jit(model.init)(key, clip(5, 32, 32), key)
    assert params.keys() == {"params"}  # nothing of a stream, nor of the monitors
    encode, decode = functions(model, params["params"])
    latent = encode(x)
    x_hat = decode(latent)
    basis = low_frequencies(16, 1, 8).reshape(16, -1)
    blocks = np.asarray(x)[0, 0].reshape(4, 8, 4, 8, 3).transpose(0, 2, 1, 3, 4).reshape(16, -1)
    expected = (blocks @ basis.T @ basis).reshape(4, 4, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(32, 32, 3)
    np.testing.assert_allclose(x_hat[0, 0], expected, atol=1e-5)
    latents = (blocks @ basis.T).reshape(4, 4, 16) * LATENT_SCALE * 2  # a static clip of 4 frames: sqrt(4)
    np.testing.assert_allclose(latent[0, 0], latents, atol=1e-5)


def test_the_sizes_are_those_named():
    def millions(size):
        model = Autoencoder(architecture(size=size))
        key = jax.random.key(0)
        shapes = jax.eval_shape(model.init, key, jnp.zeros((1, 5, 32, 32, 3)), key)
        return sum(x.size for x in jax.tree.leaves(shapes)) / 1e6

    np.testing.assert_allclose([millions(s) for s in SIZES], [6.7, 22.1, 23.6, 96.3, 383.6], rtol=0.01)


def test_the_latent_shape_is_that_of_the_encoder():
    model, params = randomized(spatial_factor=4, temporal_factor=2)
    z = functions(model, params)[0](clip(7, 16, 24))
    assert z.shape[1:] == model.architecture.latent_shape(7, 16, 24)
