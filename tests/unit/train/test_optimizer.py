import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import randomized
from vaejax.config import schema as config
from vaejax.models.ema import ema
from vaejax.train import optimizer as optim


def settings(**changes):
    optim_config = config.defaults().optim
    optim_config.update(changes)
    return optim_config


@pytest.fixture(scope="module")
def tree():
    _, params = randomized()
    params = {"autoencoder": params, "likelihood": {"log_scale": jnp.float32(0.2)}}
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(7)
    gradients = [jnp.float32(3 * rng.standard_normal(x.shape)) for x in leaves]
    return params, jax.tree.unflatten(structure, gradients)


def leaf(tree, path):
    for name in path:
        tree = tree[name]
    return np.asarray(tree, np.float64)


def norm(v, axes):
    return np.sqrt(np.sum(v**2, axis=axes, keepdims=True))


@pytest.mark.parametrize("clip_scales", [False, True])
def test_clipping_is_that_of_the_paper_on_every_leaf(tree, clip_scales):
    params, gradients = tree
    clipping = optim.clipping(settings(agc=0.05, agc_scales=clip_scales))
    clipped, _ = jax.jit(clipping.update)(gradients, clipping.init(params), params)
    changed = set()
    for (path, p), g, c in zip(
        jax.tree_util.tree_leaves_with_path(params),
        jax.tree.leaves(gradients),
        jax.tree.leaves(clipped),
        strict=True,
    ):
        name = "/".join(k.key for k in path)
        w, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
        exempt = name.startswith(("likelihood", "autoencoder/decoder/conv_out"))
        exempt |= name.endswith(("/scale", "/gain")) and not clip_scales
        if not exempt:
            # A unit is an output channel of a kernel, norms over its fan-in; a vector is one unit.
            axes = tuple(range(w.ndim - 1)) if w.ndim > 1 else None
            g = g * np.minimum(1, 0.05 * np.maximum(norm(w, axes), 1e-3) / norm(g, axes))
            changed.add(name.split("/")[-1])
        np.testing.assert_allclose(c, g, rtol=2e-5, atol=1e-8, err_msg=name)
    assert changed == {"kernel", "bias"} | ({"scale", "gain"} if clip_scales else set())


def test_the_chain_is_clipping_then_adam_then_the_rate(tree):
    params, gradients = tree
    c = settings(agc=0.05, learning_rate=1e-2, warmup=2, schedule="constant", weight_decay=0.1)
    optimizer, clipping = optim.optimizer(c, 10), optim.clipping(c)
    state = optimizer.init(params)
    clipped, _ = jax.jit(clipping.update)(gradients, clipping.init(params), params)
    update = jax.jit(optimizer.update)
    m = v = 0.0
    for step in range(4):
        updates, state = update(gradients, state, params)
        for path in (("autoencoder", "encoder", "conv_in", "kernel"), ("likelihood", "log_scale")):
            g, w = leaf(clipped, path), leaf(params, path)
            if path[0] == "likelihood":
                expected = g / (np.abs(g) + 1e-8) * optim.LOG_SCALE_RATE
            else:
                m, v = c.b1 * m + (1 - c.b1) * g, c.b2 * v + (1 - c.b2) * g**2
                n = step + 1
                expected = m / (1 - c.b1**n) / (np.sqrt(v / (1 - c.b2**n)) + 1e-8) + 0.1 * w
            rate = 1e-2 * min(1, step / 2)
            np.testing.assert_allclose(leaf(updates, path), -rate * expected, rtol=1e-3, atol=1e-7)


def test_clipping_by_the_norm_scales_all_gradients_together(tree):
    params, gradients = tree
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradients)))
    for largest in (0.5 * norm, 2 * norm):
        clipping = optim.clipping(settings(clip_norm=float(largest)))
        clipped, _ = jax.jit(clipping.update)(gradients, clipping.init(params), params)
        for one, other in zip(jax.tree.leaves(clipped), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(one, other * min(1, largest / norm), rtol=1e-5)
    states = [optim.optimizer(settings(clip_norm=c), 10).init(params) for c in (0.0, 1.0)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(
        states[1]
    )  # so that runs resume with the other


def test_kernels_with_many_inputs_learn_more_slowly(tree):
    params, gradients = tree
    names = []

    def updates(**changes):
        chain = optim.optimizer(settings(learning_rate=1.0, warmup=0, agc=0.0, **changes), steps=10)
        return jax.jit(chain.update)(gradients, chain.init(params), params)[0]

    for (path, scaled), plain in zip(
        jax.tree_util.tree_leaves_with_path(updates(fan_in=30)), jax.tree.leaves(updates()), strict=True
    ):
        kernel = path[-1].key == "kernel"
        inputs = int(np.prod(plain.shape[:-1])) if kernel else 1
        np.testing.assert_allclose(scaled, plain * min(1, 30 / inputs), rtol=1e-6)
        names += [(kernel, inputs > 30)]
    assert set(names) == {(False, False), (True, False), (True, True)}


def test_the_cosine_schedule_warms_up_and_ends_where_it_should():
    schedule = optim.learning_rate(settings(learning_rate=2.0, warmup=10, final_fraction=0.1), 110)
    np.testing.assert_allclose([schedule(s) for s in (0, 5, 10, 60, 110)], [0, 1, 2, 1.1, 0.2], rtol=1e-6)


def test_the_average_forgets_its_start_and_then_decays_slowly():
    values = np.random.default_rng(0).normal(size=200)
    average, expected = jnp.float32(50.0), 50.0
    for step, value in enumerate(values):
        average = ema(average, jnp.float32(value), 0.95, jnp.int32(step))
        decay = min(0.95, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(average, expected, atol=1e-5)
    assert abs(expected) < 1
