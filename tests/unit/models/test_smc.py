"""Self-modulated kernels against the formula."""

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.models.smc import modulate


def test_the_kernel_is_that_of_the_formula(key):
    kernel = np.asarray(jax.random.normal(key, (3, 3, 3, 5, 7)))
    scale = np.asarray(jax.random.normal(jax.random.key(1), (5,)))
    expected = np.empty_like(kernel)
    for j in range(7):
        modulated = kernel[..., j].astype(np.float64) * scale
        expected[..., j] = 1.7 * modulated / np.sqrt(np.sum(modulated**2) + 1e-8)
    np.testing.assert_allclose(modulate(kernel, scale, jnp.float32(1.7)), expected, rtol=1e-5, atol=1e-7)


def test_the_norm_is_taken_in_float32_whatever_the_kernel_is(key):
    kernel = jax.random.normal(key, (3, 3, 3, 64, 4)).astype("bfloat16")
    out = modulate(kernel, np.ones(64, np.float32), jnp.float32(1.0))
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.sum(np.square(out), axis=(0, 1, 2, 3)), 1, rtol=1e-5)


def test_the_size_of_the_weights_does_not_matter(key):
    kernel = jax.random.normal(key, (1, 3, 3, 4, 4))
    ones = np.ones(4, np.float32)
    np.testing.assert_allclose(
        modulate(kernel, ones, jnp.float32(1)), modulate(100 * kernel, ones, jnp.float32(1)), rtol=1e-5
    )
