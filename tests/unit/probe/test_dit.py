"""The probe's transformer, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import random_parameters
from vaejax.probe import dit
from vaejax.probe.presets import ATTENTION, PRESETS
from vaejax.probe.score import transformer


def randomized(module, *inputs):
    """Random parameters of a module, including those initialized to zero, and float64 copies of them."""
    params = random_parameters(module, *inputs, gain=1.0)
    return params, jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_transformer_of_clips_attends_over_space_and_time_by_turns():
    found = [transformer(PRESETS["cpu"], clips, 0).attention for clips in (False, True)]
    assert found == ["full", "factorised"]
    full = dataclasses.replace(PRESETS["cpu"], attention="full")
    assert transformer(full, True, 0).attention == "full"


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_new_transformer_predicts_zero_and_its_blocks_are_the_identity(attention):
    model = dit.DiT(16, 2, 2, attention=attention)
    x, times = normal(2, 3, 4, 6, 5), jnp.array([0.1, 0.9])
    variables = jax.jit(model.init)(jax.random.key(0), x, times)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, x, times), np.zeros_like(x))
    tokens, condition = normal(2, 3, 24, 16), normal(2, 1, 1, 16)
    block = dit.Block(2, "full", jnp.float32)
    variables = jax.jit(block.init)(jax.random.key(0), tokens, condition)
    np.testing.assert_array_equal(jax.jit(block.apply)(variables, tokens, condition), tokens)


@pytest.mark.parametrize("axis", ["full", "space", "time"])
def test_attention_is_numpys_softmax_over_the_tokens_of_its_axis(axis):
    x, heads, width = normal(2, 3, 5, 8), 2, 8
    module = dit.Attention(heads, axis)
    params, p = randomized(module, x)
    got = jax.jit(module.apply)({"params": params}, x)

    qkv = (x @ p["qkv"]["kernel"] + p["qkv"]["bias"]).reshape(2, 3, 5, 3, heads, width // heads)
    unit = [a / np.sqrt(np.square(a).mean(-1, keepdims=True) + 1e-6) for a in np.moveaxis(qkv, 3, 0)[:2]]
    q, k = (a * p[f"{name}_norm"]["scale"] for a, name in zip(unit, ("query", "key"), strict=True))
    wanted = np.zeros((2, 3, 5, heads, width // heads))
    for b, t, s, h in np.ndindex(2, 3, 5, heads):
        frames = [t] if axis == "space" else range(3)
        places = [s] if axis == "time" else range(5)
        seen = [(b, i, j, h) for i in frames for j in places]
        weights = np.exp([q[b, t, s, h] @ k[one] / np.sqrt(width // heads) for one in seen])
        wanted[b, t, s, h] = sum(
            w * qkv[b, i, j, 2, h] for w, (_, i, j, _) in zip(weights, seen, strict=True)
        )
        wanted[b, t, s, h] /= weights.sum()
    wanted = wanted.reshape(2, 3, 5, width) @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_a_block_is_the_block_of_the_paper():
    x, condition = normal(2, 1, 6, 8), normal(2, 1, 1, 8, seed=2)
    block = dit.Block(2, "full", jnp.float32)
    params, p = randomized(block, x, condition)
    got = jax.jit(block.apply)({"params": params}, x, condition)

    def norm(a):
        return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)

    def gelu(a):
        return 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))

    modulation = condition @ p["modulation"]["kernel"] + p["modulation"]["bias"]
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = np.split(modulation, 6, -1)
    attention = dit.Attention(2, "full")
    h = jax.jit(attention.apply)(
        {"params": params["attention"]}, (norm(x) * (1 + scale_1) + shift_1).astype(np.float32)
    )
    wanted = x + gate_1 * h
    h = (norm(wanted) * (1 + scale_2) + shift_2) @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"]
    wanted = wanted + gate_2 * (gelu(h) @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"])
    np.testing.assert_allclose(got, wanted, atol=2e-4)


def test_a_token_is_a_patch_and_unpatchify_restores_it():
    x = normal(2, 3, 4, 6, 5)
    tokens = dit.patchify(x, 2)
    assert tokens.shape == (2, 3, 6, 20)
    np.testing.assert_array_equal(tokens[1, 2, 4], x[1, 2, 2:4, 2:4].ravel())  # row 1, column 1 of 2 x 3
    np.testing.assert_array_equal(dit.unpatchify(tokens, 4, 6, 2), x)
    np.testing.assert_array_equal(dit.unpatchify(dit.patchify(x, 1), 4, 6, 1), x)


def test_every_pixel_of_every_frame_has_its_own_embedding():
    places = np.asarray(dit.embed_positions(3, 4, 5, 16)).reshape(-1, 16)
    assert len(places) == 3 * 4 * 5
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + 10 * np.eye(len(places))
    assert distances.min() > 0.1
    image = np.asarray(dit.embed_positions(1, 4, 5, 16)).reshape(4, 5, 16)
    np.testing.assert_allclose(image[2, 3, 0], np.sin(2), atol=1e-6)  # half for the row
    np.testing.assert_allclose(image[2, 3, 8], np.sin(3), atol=1e-6)  # half for the column
