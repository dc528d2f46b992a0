"""Autoencoders from the library diffusers as codecs, run by PyTorch, with trained or random weights."""

import contextlib
import fractions
import importlib.util
import inspect
import json
import os
from typing import Any

import numpy as np

from vaejax.codec.tiling import check_tile
from vaejax.errors import InputError, one_line
from vaejax.evaluate.codecs.base import array_bits, check_frames
from vaejax.files import expand_home
from vaejax.models.latent_shape import latent_frames, latent_side
from vaejax.models.pixels import from_uint8

IMAGES = ("AutoencoderKL",)
VIDEOS = (
    "AutoencoderKLWan",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLHunyuanVideo",
    "AutoencoderKLLTXVideo",
)
# Configuration keys that describe how to normalize latents; recorded in results, but not applied here.
_RECORDED = (
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
)


class DiffusersCodec:
    """An autoencoder from diffusers as a `Codec`, in float32 and evaluation mode.

    Latents are the posterior's mean. Video models take images as clips of one frame, and image models take
    clips frame by frame. The compression factors are measured, because configurations use different keys for
    them, and some of the values are wrong. CogVideoX restores the length of a clip only from an odd number of
    latent frames, so its clips have T = 1 + 8k.

    Args:
      name: name of the codec in results.
      vae: the model.
      settings: further settings to record in results.
      seed: seed of the noise that the decoder of some LTX models adds.
    """

    def __init__(self, name: str, vae: Any, settings: dict[str, Any] | None = None, seed: int = 0):
        import diffusers
        import torch

        self.name, self._torch, self._seed = name, torch, seed
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._vae = vae.to(self._device).eval()
        self._is_video = type(vae).__name__ not in IMAGES
        self._noisy = any(vae.config.get("decoder_inject_noise", ()))
        self._timed = bool(vae.config.get("timestep_conditioning"))
        self._find_factors()
        self.settings = {
            "kind": "diffusers",
            "class": type(vae).__name__,
            "latent": "posterior mean",
            "dtype": "float32",
            "device": self._device,
            "diffusers": diffusers.__version__,
            "torch": str(torch.__version__),
            **{key: vae.config[key] for key in _RECORDED if vae.config.get(key) is not None},
            **({"decode_timestep": 0.0} if self._timed else {}),
            **({"decoder_noise_seed": seed} if self._noisy else {}),
            **(settings or {}),
        }

    @classmethod
    def open(cls, name: str, seed: int = 0) -> "DiffusersCodec":
        """Opens 'diffusers:CLASS:PATH' from local files.

        Args:
          name: 'diffusers:CLASS:PATH'. PATH is a folder written by `save_pretrained`, such as the vae folder
            of a pipeline. For random weights, PATH is a config.json, or JSON text with its contents.
          seed: seed of random weights and of the decoder's noise.

        Raises:
          InputError: if the class or the path cannot be used, or torch or diffusers is not installed.
        """
        kind, path = (name.split(":", 2) + 2 * [""])[1:3]
        if kind not in IMAGES + VIDEOS:
            raise InputError(f"codec {name!r}: no such class; accepted: {', '.join(IMAGES + VIDEOS)}")
        missing = [each for each in ("torch", "diffusers") if importlib.util.find_spec(each) is None]
        if missing:
            raise InputError(
                f"codec {name!r}: {' and '.join(missing)} not installed; accepted:"
                " pip install torch diffusers"
            )
        import diffusers

        made = getattr(diffusers, kind, None)
        if made is None:
            raise InputError(
                f"codec {name!r}: diffusers {diffusers.__version__} has no {kind}; accepted: a later version"
            )
        folder = expand_home(path)
        if path and os.path.isdir(folder):
            return cls(name, _pretrained(name, made, folder), {"weights": "file"}, seed)
        config = _config(name, made, path)
        return cls(
            name,
            _random(name, made, config, seed),
            {"weights": f"random, seed {seed}", "config": config},
            seed,
        )

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t, h, w, c) of the latents of a clip."""
        s = self.spatial_factor
        t, h, w = latent_frames(frames, self.temporal_factor), latent_side(height, s), latent_side(width, s)
        return t, h, w, self._channels

    def posterior(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encodes (B, T, H, W, 3) uint8 to the posterior's mean and log-variance, (b, t, h, w, c) float32."""
        check_frames(self, frames)
        mean, log_variance = self._moments(from_uint8(frames))
        return mean, log_variance

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Encodes (B, T, H, W, 3) uint8 to the posterior's mean, (b, t, h, w, c) float32."""
        return self.posterior(frames)[0]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decodes latents (b, t, h, w, c) to (B, T, H, W, 3) float32 in [-1, 1]."""
        z = self._channels_first(np.asarray(latents, np.float32))
        # Noisy decoders get one sample at a time, with the same noise, so results do not depend on the batch.
        parts = z.split(1) if self._noisy else [z]
        with self._computing():
            frames = [self._decode_part(part) for part in parts]
        return self._channels_last(self._torch.cat(frames), len(latents)).clip(-1, 1)

    def decode_tiled(self, latents: np.ndarray, tile: int, overlap: int) -> np.ndarray:
        """Decodes in square tiles, by the model's own tiling; `tile` and `overlap` are in latent pixels."""
        check_tile(tile, overlap)
        vae, s = self._vae, self.spatial_factor
        # An exact fraction: diffusers multiplies sizes by it and rounds down. The rounding error of a float
        # could lose a pixel.
        share = fractions.Fraction(overlap, tile)
        sizes = {
            "tile_sample_min": tile * s,
            "tile_latent_min": tile,
            "tile_sample_stride": (tile - overlap) * s,
        }
        vae.enable_tiling()
        for side in ("height", "width"):
            for start, value in sizes.items():
                for attribute in (f"{start}_{side}", f"{start}_size"):
                    if hasattr(vae, attribute):
                        setattr(vae, attribute, value)
            for attribute in (f"tile_overlap_factor_{side}", "tile_overlap_factor"):
                if hasattr(vae, attribute):
                    setattr(vae, attribute, share)
        try:
            return self.decode(latents)
        finally:
            vae.disable_tiling()

    def tile_spans(self, size: int, tile: int, overlap: int) -> list[tuple[int, int]]:
        """(start, stop) of the tiles of `decode_tiled` along one side, equally spaced, in latent pixels."""
        starts = range(0, size, tile - overlap) if size > tile else (0,)
        return [(start, min(start + tile, size)) for start in starts]

    def bits(self, latents: np.ndarray) -> float:
        """Bits per pixel, 16 per latent number."""
        return array_bits(self, latents)

    def _find_factors(self) -> None:
        """Measures the compression factors on a clip, and finds `frame_multiple`.

        The clip has 9 frames, or 1 for image models. The codec takes clips of 1 + k·`frame_multiple` frames.
        `frame_multiple` is the smallest of 1, 2 and 4 times the temporal factor for which decoding restores
        the length and height of a clip.

        Raises:
          InputError: if none of the three restores them.
        """
        side = 64
        while True:
            try:
                mean, _ = self._moments(np.zeros((1, 9 if self._is_video else 1, side, side, 3), np.float32))
                break
            except RuntimeError:  # the frame may be smaller than a kernel
                side *= 2
                if side > 512:
                    raise
        _, t, h, _, self._channels = mean.shape
        self.spatial_factor = side // h
        self.temporal_factor = self.frame_multiple = 8 // (t - 1) if t > 1 else 1
        for k in (1, 2, 4):
            clip = self.decode(np.zeros((1, 1 + k, 2, 2, self._channels), np.float32))
            self.frame_multiple = k * self.temporal_factor
            if clip.shape[1:3] == (1 + self.frame_multiple, 2 * self.spatial_factor):
                return
        raise InputError(
            f"codec {self.name!r}: decoding does not restore the size of a clip: {clip.shape[1]} frames of"
            f" {clip.shape[2]} rows instead of {1 + self.frame_multiple} of {2 * self.spatial_factor};"
            " accepted: a model with the same factors for encoding and decoding"
        )

    def _moments(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._computing():
            posterior = self._vae.encode(self._channels_first(x)).latent_dist
        mean, log_variance = posterior.mean, posterior.logvar
        return self._channels_last(mean, len(x)), self._channels_last(log_variance, len(x))

    def _decode_part(self, z: Any) -> Any:
        torch = self._torch
        more = {"temb": torch.zeros(len(z), device=z.device)} if self._timed else {}
        if not self._noisy:
            return self._vae.decode(z, **more).sample
        with torch.random.fork_rng(devices=[z.device] if z.is_cuda else []):
            torch.manual_seed(self._seed)
            return self._vae.decode(z, **more).sample

    @contextlib.contextmanager
    def _computing(self):
        """Disables gradients and, on a GPU, TF32 convolutions."""
        torch = self._torch
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield

    def _channels_first(self, x: np.ndarray) -> Any:
        """Converts (B, T, H, W, C) to a video model's (B, C, T, H, W), or an image model's (B·T, C, H, W)."""
        tensor = self._torch.from_numpy(np.array(x)).to(self._device)
        if self._is_video:
            return tensor.permute(0, 4, 1, 2, 3)
        return tensor.flatten(0, 1).permute(0, 3, 1, 2)

    def _channels_last(self, x: Any, batch: int) -> np.ndarray:
        """Inverse of `_channels_first`, from a tensor on the device to a NumPy array."""
        x = x.permute(0, 2, 3, 4, 1) if self._is_video else x.permute(0, 2, 3, 1).unflatten(0, (batch, -1))
        return x.contiguous().cpu().numpy()


def _pretrained(name: str, made: type, folder: str) -> Any:
    import torch

    _check_class(name, made, _read(name, os.path.join(folder, "config.json")))
    try:
        vae, loading = made.from_pretrained(
            folder,
            local_files_only=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"codec {name!r}: {one_line(error)}; accepted: a folder with config.json and weights"
        ) from error
    if loading["missing_keys"]:
        raise InputError(
            f"codec {name!r}: its weights lack {loading['missing_keys'][0]}; accepted: the weights that"
            " its config.json describes"
        )
    return vae


def _random(name: str, made: type, config: dict[str, Any], seed: int) -> Any:
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return made.from_config(config)
    except Exception as error:  # constructors raise any exception for inconsistent settings
        raise InputError(
            f"codec {name!r}: {one_line(error)}; accepted: a configuration of {made.__name__}"
        ) from error


def _config(name: str, made: type, path: str) -> dict[str, Any]:
    """The configuration from a file or JSON text, without keys that begin with '_'.

    Other unknown keys are errors, though diffusers ignores them.
    """
    text = path.lstrip().startswith("{")
    config = _parsed(name, path) if text else _read(name, expand_home(path))
    _check_class(name, made, config)
    known = set(inspect.signature(made.__init__).parameters) - {"self"}
    for key in config:
        if key not in known and not key.startswith("_"):
            raise InputError(f"codec {name!r}: unknown key {key}; accepted: {', '.join(sorted(known))}")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _read(name: str, path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            return _parsed(name, file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"codec {name!r}: {path or 'an empty PATH'} cannot be read; accepted: a folder of weights, a"
            " config.json or JSON text"
        ) from error


def _parsed(name: str, text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InputError(f"codec {name!r}: not JSON ({error}); accepted: a model's config.json") from error
    if not isinstance(config, dict):
        raise InputError(f"codec {name!r}: not a JSON object; accepted: a model's config.json")
    return config


def _check_class(name: str, made: type, config: dict[str, Any]) -> None:
    actual = config.get("_class_name", made.__name__)
    if actual != made.__name__:
        raise InputError(
            f"codec {name!r}: the configuration is for {actual}; accepted: diffusers:{actual}:PATH"
        )
