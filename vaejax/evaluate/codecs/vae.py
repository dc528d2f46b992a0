"""The codec of a vaejax run or export: the averaged (EMA) parameters of one of its checkpoints."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vaejax.codec import network
from vaejax.codec.load import load_vae
from vaejax.codec.tiling import decode_tiled, spans
from vaejax.errors import InputError
from vaejax.evaluate.codecs.base import array_bits, check_frames
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import mesh as sharding


class VaeCodec:
    """An autoencoder and its parameters as a `Codec`; latents are the posterior's mean.

    Args:
      name: name of the codec in results.
      model: the autoencoder.
      params: parameters of the model: 'params' of the variables that `model.init` returns.
      settings: further settings to record in results.
      latents: 'mean' and 'std' of each latent channel, (c,), if they are known from elsewhere.
      mesh: devices that share each batch. If they belong to several processes, all processes must call each
        method together. None: one device.

    Attributes:
      model: the autoencoder.
      params: the current parameters.
      latents: see above.
      shards: number of devices that share a batch; batches are padded to a multiple of it.
    """

    def __init__(
        self,
        name: str,
        model: Autoencoder,
        params: dict[str, Any],
        settings: dict[str, Any] | None = None,
        mesh: Mesh | None = None,
        latents: dict[str, list[float]] | None = None,
    ):
        a = model.architecture
        self.name, self.model, self.latents = name, model, latents
        self.spatial_factor, self.temporal_factor = a.spatial_factor, a.temporal_factor
        self.pixel_channels = a.pixel_channels
        self.settings = {"kind": "vaejax", "latent": "posterior mean", "dtype": a.dtype, **(settings or {})}
        self._mesh = mesh
        self.shards = mesh.size if mesh else 1
        self.load(params)

    @classmethod
    def open(
        cls, name: str, step: int | None = None, dtype: str = "", mesh: Mesh | None = None
    ) -> "VaeCodec":
        """Reads a run, an export or a published VAE.

        Args:
          name: 'RUN', 'RUN/checkpoints/STEP', the folder of an export, or a published VAE.
          step: step of a completed checkpoint; default: the one in `name`, else the latest.
          dtype: compute dtype, 'float32' or 'bfloat16'; '' keeps the run's.
          mesh: devices that share each batch; None: one device.

        Raises:
          InputError: see `load_vae`.
        """
        vae = load_vae(name, step, dtype)
        settings = {"step": vae.step, "parameters": "ema"}
        latents = None
        if vae.mean is not None and vae.std is not None:
            latents = {"mean": vae.mean.tolist(), "std": vae.std.tolist()}
        return cls(name, Autoencoder(vae.architecture), vae.params, settings, mesh, latents)

    def load(self, params: dict[str, Any]) -> None:
        """Replaces the parameters, without compiling the model again; {} frees the memory of the old ones."""
        self.params = sharding.replicate(self._mesh, params) if self._mesh else jax.device_put(params)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t, h, w, c) of the latents of a clip."""
        return self.model.architecture.latent_shape(frames, height, width)

    def posterior(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encodes (B, T, H, W, C) uint8 to the posterior's mean and log-variance, (b, t, h, w, c) float32."""
        check_frames(self, frames)
        mean, log_variance = self._run(network.posterior, frames)
        return mean, log_variance

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Encodes (B, T, H, W, C) uint8 to the posterior's mean, (b, t, h, w, c) float32."""
        return self.posterior(frames)[0]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decodes latents (b, t, h, w, c) to (B, T, H, W, C) float32 in [-1, 1]."""
        return self._run(network.decode, np.asarray(latents, np.float32))

    def decode_chunked(self, latents: np.ndarray, latent_frames: int) -> np.ndarray:
        """Decodes like `decode`, `latent_frames` latent frames at a time.

        The decoder's cache carries earlier frames from chunk to chunk.

        Raises:
          InputError: if latent_frames is below 1.
        """
        if latent_frames < 1:
            raise InputError(f"chunks of {latent_frames} latent frames; accepted: 1 or more")
        shared, count = self._shard(np.asarray(latents, np.float32)), len(latents)
        is_video = shared.shape[1] > 1
        unused = jnp.zeros(()), jnp.ones(())  # mean 0 and std 1, because these latents are not normalized
        cache, frames = {}, []
        for start in range(0, shared.shape[1], latent_frames):
            chunk = shared[:, start : start + latent_frames]
            decoded, cache = network.decode_chunk(
                self.model, self._mesh, self.params, unused, cache, chunk, is_video, False, "float32"
            )
            frames.append(self._gather(decoded)[:count])
        return np.concatenate(frames, axis=1)

    def decode_tiled(self, latents: np.ndarray, tile: int, overlap: int) -> np.ndarray:
        """Decodes like `decode`, in blended square tiles; `tile` and `overlap` are in latent pixels."""
        return decode_tiled(self.decode, latents, tile, overlap, self.spatial_factor)

    def tile_spans(self, size: int, tile: int, overlap: int) -> list[tuple[int, int]]:
        """(start, stop) of the tiles of `decode_tiled` along one side, in latent pixels."""
        return spans(size, tile, overlap)

    def bits(self, latents: np.ndarray) -> float:
        """Bits per pixel, 16 per latent number."""
        return array_bits(self, latents)

    def _run(self, function: Callable[..., Any], batch: np.ndarray) -> Any:
        """Runs a function of the model on a batch split over the devices; returns NumPy arrays."""
        result = function(self.model, self.params, self._shard(batch))
        return jax.tree.map(lambda x: self._gather(x)[: len(batch)], result)

    def _shard(self, batch: np.ndarray) -> np.ndarray | jax.Array:
        """Splits a batch among the devices, after padding it with copies to a multiple of `shards`.

        Without a mesh, returns it unchanged.
        """
        if self._mesh is None:
            return batch
        filled = np.arange(len(batch) + -len(batch) % self.shards) % len(batch)
        return sharding.shard_batch(self._mesh, batch[filled])

    def _gather(self, x: jax.Array) -> np.ndarray:
        return np.asarray(sharding.replicate(self._mesh, x) if self._mesh else x)
