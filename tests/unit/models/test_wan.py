"""Wan's autoencoders against diffusers', tensor by tensor, and the promises that every family makes."""

import dataclasses
import functools
import inspect
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

pytest.importorskip("torch", reason="torch is not in the test extra")
pytest.importorskip("diffusers", reason="diffusers is not in the test extra")
import torch
from diffusers import AutoencoderKLWan

from tests.support.wan import design, model_of, moments, pair, path_and_leaf, pixels
from vaejax.config.schema import defaults
from vaejax.errors import InputError
from vaejax.models import wan_names
from vaejax.models.constraints import Placement, placing
from vaejax.models.conv import general_path
from vaejax.models.families import architecture_of, from_json, to_json
from vaejax.models.wan import SIZES, WanDesign
from vaejax.models.wan_blocks import ResidualBlock
from vaejax.models.wan_statistics import published_statistics
from vaejax.runtime import flops
from vaejax.runtime import mesh as sharding

BOTH = [pytest.param("2.1"), pytest.param("2.2")]
# All channels. Wan 2.2 has 705 million parameters, whose gradients need 14 GB.
FULL = [pytest.param(size, marks=pytest.mark.variants) for size in ("wan2.1", "wan2.2")]
ONE = [pytest.param("2.1", marks=pytest.mark.variants), pytest.param("2.2")]


def encode(model, params, x, **options):
    """The moments of pixels."""
    return model.apply({"params": params}, x, method=lambda m, x: m.encoder(x, True), **options)


def decode(model, params, z, **options):
    """The pixels of latents."""
    return model.apply({"params": params}, z, method="decode", **options)


def clip(frames, height, width, channels=3, seed=1):
    shape = (1, frames, height, width, channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def inputs(d, frames, height=2, width=3):
    """Pixels, and latents of the same shape as theirs, which has `height` and `width`."""
    x = clip(frames, height * d.spatial_factor, width * d.spatial_factor)
    return x, 2 * clip(1 + (frames - 1) // d.temporal_factor, height, width, d.latent_channels, seed=2)


def close(actual, desired, tolerance):
    """Compares with an error relative to the largest element."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    np.testing.assert_allclose(actual, desired, rtol=0, atol=tolerance * np.abs(desired).max())


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [
        (1, 3, 2),
        (9, 2, 3),
        pytest.param(5, 5, 1, marks=pytest.mark.variants),
        pytest.param(17, 2, 2, marks=pytest.mark.variants),
        pytest.param(33, 1, 3, marks=pytest.mark.variants),
    ],
)
@pytest.mark.parametrize("version", BOTH + FULL)
def test_moments_and_pixels_are_those_of_diffusers(version, frames, height, width):
    d = design(version)
    theirs, params = pair(d)
    x, z = inputs(d, frames, height, width)
    with torch.no_grad():
        expected = moments(theirs, x), pixels(theirs, z)
    close(jax.jit(functools.partial(encode, model_of(d)))(params, x), expected[0], 1e-5)
    close(jax.jit(functools.partial(decode, model_of(d)))(params, z), expected[1], 1e-5)


@pytest.mark.parametrize("frames", [5, *(pytest.param(t, marks=pytest.mark.variants) for t in (1, 9))])
@pytest.mark.parametrize("version", BOTH + FULL)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_every_tensor_has_its_effect_in_diffusers(half, version, frames):
    """One tensor after the other is changed. In an image, convolutions over time change nothing."""
    d = design(version)
    theirs, params = pair(d)
    # On the device, because at full size copying all for every change would take most of the time.
    flat = jax.device_put(flatten_dict({half: params[half]}))
    del params
    model, (x, z) = model_of(d), inputs(d, frames, 1, 2)
    if half == "encoder":
        ours, reference = jax.jit(lambda params: encode(model, params, x)), lambda: moments(theirs, x)
    else:
        ours, reference = jax.jit(lambda params: decode(model, params, z)), lambda: pixels(theirs, z)
    rng = np.random.default_rng(3)
    with torch.no_grad():
        before = reference()
        for name, tensor in theirs.state_dict().items():
            if wan_names.from_diffusers(name)[0] != half:
                continue
            kept = tensor.clone()
            noise = torch.tensor(rng.standard_normal(tensor.shape), dtype=tensor.dtype)
            tensor.add_(noise * 0.5 * kept.std())
            expected = reference()
            path, leaf = path_and_leaf(name, tensor)
            changed = ours(unflatten_dict({**flat, path: leaf}))
            tensor.copy_(kept)
            effect = float((expected - before).abs().max() / before.abs().max())
            assert (effect > 1e-4) != (frames == 1 and "time_conv" in name), name
            close(changed, expected, 1e-5)


@pytest.mark.parametrize("frames", [5, *(pytest.param(t, marks=pytest.mark.variants) for t in (1, 9))])
@pytest.mark.parametrize("version", BOTH + FULL)
def test_gradients_are_those_of_diffusers(version, frames):
    d = design(version)
    theirs, params = pair(d)
    model = model_of(d)
    x, z = inputs(d, frames)
    weights = [np.cos(np.arange(y.numel())).reshape(y.shape) for y in (moments(theirs, x), pixels(theirs, z))]

    def loss(params):
        return sum(
            jnp.sum(w * f(model, params, y))
            for w, f, y in zip(weights, (encode, decode), (x, z), strict=True)
        )

    found = flatten_dict(jax.jit(jax.grad(loss))(params))
    theirs.zero_grad()
    for weight, y in zip(weights, (moments(theirs, x), pixels(theirs, z)), strict=True):
        (torch.tensor(weight) * y).sum().backward()
    for name, tensor in theirs.named_parameters():
        path = wan_names.from_diffusers(name)
        if tensor.grad is None:  # an image's convolutions over time
            assert frames == 1 and not np.any(found[path]), name
        else:
            close(found[path], wan_names.from_torch(path, tensor.grad.numpy()), 1e-4)


@pytest.mark.parametrize("version", BOTH + FULL)
def test_bfloat16_is_near_diffusers_in_float32(version):
    d = design(version)
    theirs, params = pair(d)
    model = model_of(dataclasses.replace(d, dtype="bfloat16"))
    x, z = inputs(d, 5)
    with torch.no_grad():
        expected = moments(theirs, x).numpy(), pixels(theirs, z).numpy()
    found = jax.jit(lambda params: (encode(model, params, x), decode(model, params, z)))(params)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.float32
        assert 1e-4 < np.sqrt(np.mean(np.square(a - b)) / np.mean(np.square(b))) < 2e-2


@pytest.mark.parametrize("version", BOTH)
def test_a_stream_in_chunks_is_the_whole_clip(version):
    d = design(version)
    params, model = pair(d)[1], model_of(d)
    x, z = inputs(d, 17, 1, 2)

    @functools.partial(jax.jit, static_argnums=2)
    def apply(variables, chunk, method):
        return model.apply(variables, chunk, True, method=method, mutable="cache")

    def streamed(sequence, bounds, method):
        cache, chunks = {}, []
        for start, stop in itertools.pairwise(bounds):
            chunk, cache = apply({"params": params, **cache}, sequence[:, start:stop], method)
            chunks.append(chunk.mean if method == "encode" else chunk)
        return jnp.concatenate(chunks, axis=1)

    mean = encode(model, params, x)[..., : d.latent_channels]
    close(streamed(x, (0, 1, 5, 13, 17), "encode"), mean, 1e-5)
    close(streamed(x, (0, 9, 17), "encode"), mean, 1e-5)
    frames = decode(model, params, z)
    close(streamed(z, (0, 1, 2, 4, 5), "decode"), frames, 1e-5)
    close(streamed(z, (0, 2, 5), "decode"), frames, 1e-5)


@pytest.mark.parametrize("version", BOTH)
def test_an_image_is_a_clip_of_one_frame_for_two_fifths_of_the_work(version):
    d = design(version)
    params, model = pair(d)[1], model_of(d)
    x, z = inputs(d, 1)

    def outcome():
        def both(params):  # a new function, because JAX would reuse the trace of an earlier one
            return encode(model, params, x), decode(model, params, z)

        traced = jax.jit(both).trace(params)
        return traced.lower().compile()(params), flops.count(traced.jaxpr)

    image, work = outcome()
    with general_path():
        clip_of_one, general_work = outcome()
    for a, b in zip(image, clip_of_one, strict=True):
        close(a, b, 1e-5)
    assert work <= 0.4 * general_work


@pytest.mark.parametrize("version", ONE)
def test_no_latent_sees_a_later_frame_and_no_frame_a_later_latent(version):
    d = design(version)
    params, model = pair(d)[1], model_of(d)
    x, z = inputs(d, 9, 1, 1)

    def reach(function, at):
        """seen[j, i]: whether output frame j has a gradient from input frame i."""
        out, pull = jax.vjp(function, at)
        weights = np.cos(np.arange(out.size)).reshape(out.shape)
        masks = np.eye(out.shape[1], dtype=np.float32)[:, None, :, None, None, None]
        gradients = jax.jit(jax.vmap(lambda mask: pull(weights * mask)[0]))(masks)
        return np.abs(gradients).max(axis=(1, 3, 4, 5)) > 0

    frame, latent = np.arange(9), np.arange(3)
    later = reach(functools.partial(encode, model, params), x) & (frame > 4 * latent[:, None])
    assert not later.any()
    seen = reach(functools.partial(decode, model, params), z)
    assert not (seen & (latent > -(-frame[:, None] // 4))).any()
    assert seen[-1].all()


@pytest.mark.parametrize("on_tpu", [False, pytest.param(True, marks=pytest.mark.variants)])
@pytest.mark.parametrize("version", ONE)
def test_recomputation_changes_no_gradient(version, on_tpu):
    """On TPUs the first frame is processed apart from the rest, which changes no gradient either."""
    d = design(version)
    params = pair(d)[1]
    x, _ = inputs(d, 5, 1, 1)

    def gradient(remat):
        model = model_of(dataclasses.replace(d, remat=remat))

        def loss(params):
            return jnp.sum(jnp.square(model.apply({"params": params}, x, jax.random.key(1))[0]))

        return jax.jit(jax.grad(loss)).trace(params)

    plain, recomputed = gradient(()), gradient((0, 1, 2, 3))
    assert flops.count(recomputed.jaxpr) > 1.1 * flops.count(plain.jaxpr)
    if on_tpu:
        with placing(Placement(on_tpu=True)):
            recomputed = gradient((0, 1, 2, 3))
    found, expected = (traced.lower().compile()(params) for traced in (recomputed, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("version", ONE)
def test_frames_split_by_height_give_the_results_of_one_device(version):
    d = design(version)
    params, model = pair(d)[1], model_of(d)
    x, _ = inputs(d, 5, 4, 1)
    mesh = sharding.make_mesh(ConfigDict({"data": 1, "fsdp": 2, "space": 4}))

    def loss(params, x):
        y = model.apply({"params": params}, x, jax.random.key(1))[0]
        return jnp.mean(jnp.square(y)), y

    # Traced twice, because a trace remembers where arrays are placed.
    run = [jax.value_and_grad(lambda *args: loss(*args), (0, 1), has_aux=True) for _ in range(2)]
    x = np.concatenate([x, x[:, ::-1]])
    one = jax.jit(run[0])(params, x)
    with sharding.placing_frames(mesh):
        eight = jax.jit(run[1])(params, jax.device_put(x, NamedSharding(mesh, sharding.HEIGHT)))
    for a, b in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        close(a, b, 1e-4)


@pytest.mark.parametrize("version", BOTH)
def test_the_reaches_are_those_of_gradients(version):
    """Without attention, whose reach is the whole frame."""
    d = design(version)
    params, model = pair(d)[1], model_of(d)
    params = {half: dict(params[half]) for half in params}
    for half in params.values():
        proj = jax.tree.map(np.zeros_like, half["mid_block"]["attentions_0"]["proj"])
        half["mid_block"] = half["mid_block"] | {
            "attentions_0": half["mid_block"]["attentions_0"] | {"proj": proj}
        }

    def touched(function, at, columns):
        """The columns of `at` on which the given columns of the result depend."""

        def of_column(v, column):
            return jnp.sum(jnp.sin(jnp.take(function(model, params, v), column, axis=3)))

        gradient = jax.jit(jax.grad(of_column))
        return np.concatenate(
            [np.flatnonzero(np.abs(gradient(at, c)).max(axis=(0, 1, 2, 4))) for c in columns]
        )

    side, reach = d.spatial_factor, d.encoder_reach
    x, _ = inputs(d, 1, 1, 2 * reach + 3)
    found = touched(encode, x, [reach + 1]) // side - (reach + 1)
    assert found.max() == reach and -reach <= found.min()
    reach = d.decoder_reach
    _, z = inputs(d, 1, 1, 2 * reach + 3)
    found = touched(decode, z, side * (reach + 1) + np.arange(side)) - (reach + 1)
    assert (found.min(), found.max()) == (-reach, reach)
    assert not d.is_local


@pytest.mark.parametrize("version", BOTH)
def test_the_activations_of_every_level_are_recorded_at_its_resolution(version):
    d = design(version)
    params, model = pair(d)[1], model_of(d)
    x, z = inputs(d, 5)
    for half, function, at, time in (
        ("encoder", encode, x, [5, 5, 3, 2]),
        ("decoder", decode, z, [5, 5, 3, 2]),
    ):
        _, state = jax.eval_shape(
            lambda params, at, f=function: f(model, params, at, mutable=["features", "activations"]),
            params,
            at,
        )
        widths = getattr(d, f"{half}_widths")
        for level, (frames, width) in enumerate(zip(time, widths, strict=True)):
            scale = d.spatial_factor // d.patch // 2**level
            shape = (1, frames, 2 * scale, 3 * scale)
            assert state["features"][half][f"level_{level}"].shape == (*shape, width)
            assert state["activations"][half][f"level_{level}"].shape == shape


def test_training_from_scratch_starts_with_moderate_activations():
    architecture = architecture_of(settings(size="tiny"))
    model = model_of(architecture.encoder)
    key = jax.random.key(0)
    x = jax.random.uniform(key, (1, 5, 32, 32, 3), minval=-1)
    params = jax.jit(model.init)(key, jnp.zeros(architecture.example_shape), key)["params"]
    x_hat, posterior = jax.jit(model.apply)({"params": params}, x, key)
    assert np.abs(posterior.log_variance + 8).max() < 5  # noise does not hide the means
    assert 0.1 < np.std(posterior.mean) < 1 and 0.1 < np.std(x_hat) < 2
    gradient = jax.jit(jax.grad(lambda p: jnp.abs(model.apply({"params": p}, x, key)[0] - x).mean()))(params)
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradient)) < 1


def settings(**changes):
    model = defaults().model
    model.update({"family": "wan"} | changes)
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "model.size = 'base'; accepted with model.family = 'wan': 'wan2.1', 'wan2.2', 'tiny'"),
        ({"size": "wan2.1", "latent_channels": 8}, "model.latent_channels = 8; accepted: 16, with "),
        ({"size": "wan2.2", "latent_channels": 48}, "model.spatial_factor = 8; accepted: 16, with "),
        ({"size": "tiny", "temporal_factor": 8}, "model.temporal_factor = 8; accepted: 4, with "),
        ({"size": "tiny", "widths": (8,)}, "model.widths = (8,); accepted: (), with model.family = 'wan'"),
        ({"size": "tiny", "film": True}, "model.film = True; accepted: False, with model.family = 'wan'"),
        ({"size": "tiny", "remat": (4,)}, "model.remat = (4,); accepted: levels 0 to 3"),
        ({"family": "vaejax", "size": "wan2.1"}, "model.size = 'wan2.1'; accepted"),
    ],
)
def test_settings_that_contradict_the_size_are_refused(changes, message):
    with pytest.raises(InputError) as error:
        architecture_of(settings(**changes))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_design_survives_json():
    architecture = architecture_of(settings(size="wan2.2", latent_channels=48, spatial_factor=16))
    saved = json.loads(json.dumps(to_json(architecture)))
    assert saved["family"] == "wan"
    assert from_json(saved, defaults().model) == architecture


def test_the_latent_statistics_are_the_published_ones():
    designs = {size: WanDesign(**SIZES[size], pixel_channels=3, remat=(), dtype="float32") for size in SIZES}
    mean, std = published_statistics(dataclasses.replace(designs["wan2.1"], remat=(0,), dtype="bfloat16"))
    config = inspect.signature(AutoencoderKLWan.__init__).parameters
    np.testing.assert_array_equal(mean, np.float32(config["latents_mean"].default))
    np.testing.assert_array_equal(std, np.float32(config["latents_std"].default))
    mean, std = published_statistics(designs["wan2.2"])
    assert mean.shape == std.shape == (48,) and std.min() > 0
    assert published_statistics(designs["tiny"]) is None
    assert published_statistics(dataclasses.replace(designs["wan2.1"], pixel_channels=4)) is None


def test_of_a_residual_block_the_backward_pass_stores_two_activations():
    """Its input, and that of its second half."""
    block, shape = ResidualBlock(16, jnp.float32), (1, 5, 8, 8, 16)
    params = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros(shape))

    def stored(params, x):
        return jax.tree.leaves(jax.vjp(block.apply, params, x)[1])

    sizes = [leaf.size for leaf in jax.eval_shape(stored, params, jax.ShapeDtypeStruct(shape, jnp.float32))]
    assert sum(sizes) == 2 * np.prod(shape) + sum(leaf.size for leaf in jax.tree.leaves(params)) - 2 * 16
