"""The compiled functions of a trained autoencoder.

They are jitted at module level, with the model as a static argument. A second codec of the same architecture
therefore reuses them: for shapes seen before, nothing is traced or compiled again.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Num, UInt8

from vaejax.models.autoencoder import Autoencoder
from vaejax.models.pixels import from_uint8, to_uint8
from vaejax.runtime import mesh as sharding

Cache = dict[str, Any]  # Flax's collection "cache" of the model; {} before the first chunk of a stream


def apply(model: Autoencoder, variables: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Calls `model.apply`; a float32 model computes matrix products in full float32.

    By default accelerators multiply at a lower precision, so results would differ between machines.
    """
    exact = "float32" if model.architecture.dtype == "float32" else None
    with jax.default_matmul_precision(exact):
        return model.apply(variables, *args, **kwargs)


@functools.partial(jax.jit, static_argnames="model")
def posterior(
    model: Autoencoder, params: dict[str, Any], frames: UInt8[Array, "B T H W C"]
) -> tuple[Float[Array, "b t h w c"], Float[Array, "b t h w c"]]:
    """Encodes whole clips of 1 + k · temporal_factor frames to the posterior's mean and log-variance."""
    found = apply(model, {"params": params}, from_uint8(frames), method="encode")
    return found.mean, found.log_variance


@functools.partial(jax.jit, static_argnames="model")
def decode(
    model: Autoencoder, params: dict[str, Any], latents: Float[Array, "b t h w c"]
) -> Float[Array, "B T H W C"]:
    """Decodes whole clips to frames in [-1, 1]."""
    return jnp.clip(apply(model, {"params": params}, latents, method="decode"), -1, 1)


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained autoencoder that encodes and decodes streams chunk by chunk.

    Attributes:
      model: the autoencoder.
      params: parameters of the autoencoder, the tree 'params' of `model.init`.
      mean, std: statistics of the latents, (c,) float32, used for normalization.
      mesh: devices among which a batch is divided, by samples if possible, else by height; None: one device.
    """

    model: Autoencoder
    params: dict[str, Any]
    mean: jax.Array
    std: jax.Array
    mesh: Mesh | None

    @classmethod
    def on_devices(
        cls, model: Autoencoder, params: dict[str, Any], mean: Any, std: Any, mesh: Mesh | None
    ) -> "Network":
        """Puts the parameters on the devices of the mesh."""
        params = jax.device_put(params, sharding.replicated(mesh) if mesh else None)
        return cls(model, params, jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32), mesh)

    def encode(
        self,
        cache: Cache,
        frames: UInt8[Array | np.ndarray, "B T H W C"] | Float[Array | np.ndarray, "B T H W C"],
        noise: Float[Array | np.ndarray, "b t h w c"] | None,
        *,
        is_video: bool,
        normalize: bool,
    ) -> tuple[Float[Array, "b t h w c"], Cache]:
        """Encodes the next chunk of a stream.

        Args:
          cache: cache returned for the previous chunk; {} for the first.
          frames: (B, T, H, W, C) uint8, or float in [-1, 1]. T is a multiple of the temporal factor, plus 1
            in the first chunk.
          noise: normal noise (b, t, h, w, c) to sample the posterior; None takes the mean of the posterior.
          is_video: whether the whole stream has more than one frame.
          normalize: whether to return (z - mean) / std instead of z.

        Returns:
          Latents (b, t, h, w, c) float32, and the cache for the next chunk.
        """
        statistics = self.mean, self.std
        return encode_chunk(
            self.model, self.mesh, self.params, statistics, cache, frames, noise, is_video, normalize
        )

    def decode(
        self,
        cache: Cache,
        latents: Num[Array | np.ndarray, "b t h w c"],
        *,
        is_video: bool,
        normalized: bool,
        dtype: str,
    ) -> tuple[UInt8[Array, "B T H W C"] | Float[Array, "B T H W C"], Cache]:
        """Decodes the next chunk of a stream.

        Args:
          cache: cache returned for the previous chunk; {} for the first.
          latents: (b, t, h, w, c).
          is_video: whether the whole stream has more than one frame.
          normalized: whether the latents are (z - mean) / std.
          dtype: data type of the frames: 'uint8', or 'float32' in [-1, 1].

        Returns:
          Frames (B, T, H, W, C), and the cache for the next chunk.
        """
        statistics = self.mean, self.std
        return decode_chunk(
            self.model, self.mesh, self.params, statistics, cache, latents, is_video, normalized, dtype
        )


@functools.partial(jax.jit, static_argnames=("model", "mesh", "is_video", "normalize"))
def encode_chunk(
    model: Autoencoder,
    mesh: Mesh | None,
    params: dict[str, Any],
    statistics: tuple[jax.Array, jax.Array],
    cache: Cache,
    frames: UInt8[Array, "B T H W C"] | Float[Array, "B T H W C"],
    noise: Float[Array, "b t h w c"] | None,
    is_video: bool,
    normalize: bool,
) -> tuple[Float[Array, "b t h w c"], Cache]:
    """The jitted function of `Network.encode`."""
    x = from_uint8(frames) if frames.dtype == jnp.uint8 else frames.astype(jnp.float32)
    found, cache = _apply_chunk(model, params, cache, shard_frames(x, mesh), is_video, "encode")
    z = found.mean
    if noise is not None:
        z += jnp.exp(0.5 * found.log_variance) * noise
    mean, std = statistics
    return ((z - mean) / std if normalize else z), cache


@functools.partial(jax.jit, static_argnames=("model", "mesh", "is_video", "normalized", "dtype"))
def decode_chunk(
    model: Autoencoder,
    mesh: Mesh | None,
    params: dict[str, Any],
    statistics: tuple[jax.Array, jax.Array],
    cache: Cache,
    latents: Num[Array, "b t h w c"],
    is_video: bool,
    normalized: bool,
    dtype: str,
) -> tuple[UInt8[Array, "B T H W C"] | Float[Array, "B T H W C"], Cache]:
    """The jitted function of `Network.decode`."""
    z = latents.astype(jnp.float32)
    if normalized:
        mean, std = statistics
        z = z * std + mean
    x, cache = _apply_chunk(model, params, cache, shard_frames(z, mesh), is_video, "decode")
    return (to_uint8(x) if dtype == "uint8" else jnp.clip(x, -1, 1)), cache


def _apply_chunk(
    model: Autoencoder, params: dict[str, Any], cache: Cache, x: jax.Array, is_video: bool, method: str
) -> tuple[Any, Cache]:
    variables = {"params": params, "cache": cache} if cache else {"params": params}
    y, state = apply(model, variables, x, is_video, method=method, mutable="cache")
    return y, state["cache"]


def shard_frames(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Splits frames or latents among the devices of a mesh, by samples if possible, else by height.

    The height need not be a multiple of the number of devices.
    """
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, sharding.frames_sharding(mesh, len(x)))
