"""The autoencoder as two compiled functions of a chunk: what came before it lies in a cache."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import mesh as sharding


def apply(model: Autoencoder, variables: dict, *arguments, **options) -> Any:
    """`model.apply`, in float32 with all its digits where the model computes in it.

    Else an accelerator multiplies float32 in fewer digits, and results differ from machine to machine.
    """
    exact = "float32" if model.architecture.dtype == "float32" else None
    with jax.default_matmul_precision(exact):
        return model.apply(variables, *arguments, **options)


class Network:
    """Encodes and decodes the next chunk of a stream.

    Args:
      model: the autoencoder.
      params: its parameters, model.init's 'params'.
      mean, std: (c,), by which latents are normalised where asked.
      mesh: of devices among which the height of frames is split; None is one device.
    """

    def __init__(self, model: Autoencoder, params: dict, mean: jax.Array, std: jax.Array, mesh: Mesh | None):
        self._model, self._mesh = model, mesh
        self._params = jax.device_put(params, sharding.replicated(mesh) if mesh else None)
        self._mean, self._std = jnp.asarray(mean), jnp.asarray(std)
        static = ("is_video", "normalised")
        self._encode = jax.jit(self._encoded, static_argnames=static)
        self._decode = jax.jit(self._decoded, static_argnames=(*static, "dtype"))

    def encode(
        self,
        cache: dict,
        frames: jax.Array,
        noise: jax.Array | None,
        *,
        is_video: bool,
        normalised: bool,
    ) -> tuple[jax.Array, dict]:
        """Latents of the next frames.

        Args:
          cache: of the stream; {} at its start.
          frames: (B, T, H, W, 3), uint8 or float in [-1, 1]: 1 + ft·k at the start, ft·k later.
          noise: (b, t, h, w, c) from N(0, 1), to sample; None gives the posterior's mean.
          is_video: whether the stream is longer than one frame.
          normalised: gives (z - mean) / std.

        Returns:
          (b, t, h, w, c) float32, and the cache of the next chunk.
        """
        return self._encode(self._params, cache, frames, noise, is_video=is_video, normalised=normalised)

    def decode(
        self, cache: dict, latents: jax.Array, *, is_video: bool, normalised: bool, dtype: str
    ) -> tuple[jax.Array, dict]:
        """Frames of the next latents.

        Args:
          cache: of the stream; {} at its start.
          latents: (b, t, h, w, c).
          is_video: whether the stream is longer than one frame.
          normalised: they are (z - mean) / std.
          dtype: 'uint8', or 'float32' in [-1, 1].

        Returns:
          (B, T, H, W, 3) of that dtype, and the cache of the next chunk.
        """
        return self._decode(
            self._params, cache, latents, is_video=is_video, normalised=normalised, dtype=dtype
        )

    def _encoded(self, params, cache, frames, noise, is_video, normalised):
        x = frames.astype(jnp.float32)
        x = self._split(x / 127.5 - 1 if frames.dtype == jnp.uint8 else x)
        posterior, cache = self._next(params, cache, x, is_video, "encode")
        z = posterior.mean
        if noise is not None:
            z += jnp.exp(0.5 * posterior.log_variance) * noise
        return ((z - self._mean) / self._std if normalised else z), cache

    def _decoded(self, params, cache, latents, is_video, normalised, dtype):
        z = latents.astype(jnp.float32)
        z = self._split(z * self._std + self._mean if normalised else z)
        x, cache = self._next(params, cache, z, is_video, "decode")
        x = jnp.clip(x, -1, 1)
        return (jnp.round((x + 1) * 127.5).astype(jnp.uint8) if dtype == "uint8" else x), cache

    def _next(self, params, cache, x, is_video, method):
        variables = {"params": params, "cache": cache} if cache else {"params": params}
        y, state = apply(self._model, variables, x, is_video, method=method, mutable="cache")
        return y, state["cache"]

    def _split(self, x: jax.Array) -> jax.Array:
        """Splits the height among the devices, which need not divide it."""
        if self._mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, sharding.frames_sharding(self._mesh, len(x)))
