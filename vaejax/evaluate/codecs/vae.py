"""The codec of a vaejax run: the averaged (EMA) parameters of one of its checkpoints."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vaejax.codec.load import open_trained
from vaejax.codec.network import apply
from vaejax.codec.tiling import decode_tiled, spans
from vaejax.errors import InputError
from vaejax.evaluate.codecs.registry import array_bits, check_frames
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import mesh as sharding


class RunCodec:
    """An autoencoder and its parameters as a `Codec`: latents are the posterior's mean.

    Args:
      name: of the codec.
      model: the autoencoder.
      params: its parameters, model.init's 'params'.
      settings: what else is known of it.
      mesh: of devices that share a batch, of every process, which then call the methods together; None is
        one device.

    Attributes:
      shards: parts that a batch is split into; others are filled up.
    """

    def __init__(
        self,
        name: str,
        model: Autoencoder,
        params: dict,
        settings: dict[str, Any] | None = None,
        mesh: Mesh | None = None,
    ):
        a = model.architecture
        self.name, self.model = name, model
        self.spatial_factor, self.temporal_factor = a.spatial_factor, a.temporal_factor
        self.settings = {"kind": "vaejax", "latent": "posterior mean", "dtype": a.dtype, **(settings or {})}
        self._mesh = mesh
        self.shards = mesh.size if mesh else 1
        whole = sharding.replicated(mesh) if mesh else None
        self.load(params)
        self._encode = jax.jit(self._moments, out_shardings=whole)
        self._decode = jax.jit(self._pixels, out_shardings=whole)
        self._continue = jax.jit(self._next_chunk, static_argnums=3, out_shardings=(whole, None))

    @classmethod
    def open(
        cls, name: str, step: int | None = None, dtype: str = "", mesh: Mesh | None = None
    ) -> "RunCodec":
        """Reads a run or an export, as `open_trained` does.

        Args:
          name: 'RUN', 'RUN/checkpoints/STEP' or the folder of an export.
          step: of a completed checkpoint; None takes the name's, or the last.
          dtype: of the computation, 'float32' or 'bfloat16'; '' takes the run's.
          mesh: of devices that share a batch; None is one device.

        Raises:
          InputError: where there is none.
        """
        trained = open_trained(name, step, dtype)
        model = Autoencoder(trained.architecture)
        return cls(name, model, trained.params, {"step": trained.step, "parameters": "ema"}, mesh)

    def load(self, params: dict) -> None:
        """Takes other parameters of the model, for which nothing is compiled again; {} frees their memory."""
        self.params = sharding.replicate(self._mesh, params) if self._mesh else jax.device_put(params)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t, h, w, c) of the latents of a clip."""
        return self.model.architecture.latent_shape(frames, height, width)

    def posterior(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps (B, T, H, W, 3) uint8 to the mean and log-variance of the latents, (b, t, h, w, c) float32."""
        check_frames(self, frames)
        mean, log_variance = self._on_devices(self._encode, frames)
        return mean, log_variance

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Maps (B, T, H, W, 3) uint8 to the mean of the latents, (b, t, h, w, c) float32."""
        return self.posterior(frames)[0]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Maps latents (b, t, h, w, c) to (B, T, H, W, 3) float32 in [-1, 1]."""
        return self._on_devices(self._decode, np.asarray(latents, np.float32))

    def decode_chunked(self, latents: np.ndarray, latent_frames: int) -> np.ndarray:
        """As `decode`, so many latent frames at a time, each chunk given the cache of those before it."""
        if latent_frames < 1:
            raise InputError(f"chunks of {latent_frames} latent frames; accepted: a whole number from 1")
        latents, count = self._shared(np.asarray(latents, np.float32)), len(latents)
        cache, frames = {}, []
        for start in range(0, latents.shape[1], latent_frames):
            chunk = latents[:, start : start + latent_frames]
            decoded, cache = self._continue(self.params, cache, chunk, latents.shape[1] > 1)
            frames.append(np.asarray(decoded)[:count])
        return np.concatenate(frames, axis=1)

    def decode_tiled(self, latents: np.ndarray, tile: int, overlap: int) -> np.ndarray:
        """As `decode`, by square tiles of so many latent pixels; see tile.py."""
        return decode_tiled(self.decode, latents, tile, overlap, self.spatial_factor)

    def tile_spans(self, size: int, tile: int, overlap: int) -> list[tuple[int, int]]:
        """Where `decode_tiled` has its tiles along a side, in latent pixels."""
        return spans(size, tile, overlap)

    def bits(self, latents: np.ndarray) -> float:
        """Bits a pixel, 16 a latent number."""
        return array_bits(self, latents)

    def _moments(self, params: dict, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = frames.astype(jnp.float32) / 127.5 - 1
        posterior = apply(self.model, {"params": params}, x, method="encode")
        return posterior.mean, posterior.log_variance

    def _pixels(self, params: dict, latents: jax.Array) -> jax.Array:
        return jnp.clip(apply(self.model, {"params": params}, latents, method="decode"), -1, 1)

    def _next_chunk(self, params: dict, cache: dict, latents: jax.Array, is_video: bool):
        variables = {"params": params, "cache": cache} if cache else {"params": params}
        x, state = apply(self.model, variables, latents, is_video, method="decode", mutable="cache")
        return jnp.clip(x, -1, 1), state["cache"]

    def _on_devices(self, function, batch: np.ndarray) -> Any:
        """`function` of the parameters and the batch, back on this host."""
        result = function(self.params, self._shared(batch))
        return jax.tree.map(lambda x: np.asarray(x)[: len(batch)], result)

    def _shared(self, batch: np.ndarray) -> np.ndarray | jax.Array:
        """The batch among the devices, filled up with copies to what they can share."""
        if self._mesh is None:
            return batch
        filled = np.arange(len(batch) + -len(batch) % self.shards) % len(batch)
        return sharding.shard_batch(self._mesh, batch[filled])
