"""The model card of an export for PyTorch, README.md."""

from collections.abc import Mapping
from typing import Any

from vaejax.export import model_card

_HEAD = """\
---
library_name: pytorch
tags:
- vae
- autoencoder
- image
- video
- latent-diffusion
- pytorch
---

# {name}

{description}

| | |
|---|---|
| pixels | (B, {p}, T, H, W) in [-1, 1]; T = {lengths}, H and W multiples of {s} |
| latents | (B, {c}, t, h, w); t = {latent_lengths}, h = H/{s}, w = W/{s} |
| parameters | {total}: encoder {encoder}, decoder {decoder} |
| weights | averaged (EMA), stored in {dtype}; trained with convolutions in {compute} |
| training step | {step} |
| fingerprint | `{fingerprint}` |

License: to be filled in by the publisher

## Use

With `pip install torch safetensors`; `autoencoder.py` is the whole model, in one file:

```python
import sys

import torch

sys.path.insert(0, "{name}")  # this folder
from autoencoder import Autoencoder

vae = Autoencoder.from_pretrained("{name}")
x = torch.zeros(1, {p}, {clip_length}, 256, 256)  # pixels in [-1, 1]; an image has T = 1
with torch.no_grad():
    z = vae.encode(x).latent_dist.sample()
    x = vae.decode(z).sample
```

The calls are those of the video autoencoders of diffusers. {latents_are}

A long clip can be processed in chunks, with the same result. The first chunk of pixels has {first_chunk}
frames, later ones {later_chunk}. Latents may be cut anywhere:

```python
cache = {{}}
with torch.no_grad():
    chunks = [vae.decode(z[:, :, i : i + 1], cache=cache).sample for i in range(z.shape[2])]
x = torch.cat(chunks, dim=2)
```

All parameters can be trained further. `vae(x)` reconstructs, `latent_dist.kl()` is the KL divergence, and
`vae.enable_gradient_checkpointing()` saves memory. `vae.save_pretrained(FOLDER)` writes the model.
"""
_NORMALIZED = """\
Train a diffusion model on
`vae.normalize(z)`, which is (z - latents_mean) / latents_std with the statistics in `vae.config`, and decode
`vae.denormalize(z)`."""
_UNKNOWN = """\
The statistics of the training
latents are unknown, so `latents_mean` and `latents_std` in `config.json` are null. Train a diffusion model on
(z - mean) / std, with the statistics of each channel over its own training set."""


def text(name: str, config: Mapping[str, Any]) -> str:
    """Returns the text of the model card, as Markdown.

    Args:
      name: name of the export's folder.
      config: the record of the source (`source.record`), and 'rounding', the result of `verify.check_codec`.
    """
    facts = model_card.facts(config)
    factor = facts["t"]
    head = _HEAD.format(
        **facts,
        name=name,
        clip_length=1 + 4 * factor,
        first_chunk=f"1 + a multiple of {factor}" if factor > 1 else "any number of",
        later_chunk=f"a multiple of {factor}" if factor > 1 else "too",
        latents_are=_UNKNOWN if config["latents"]["mean"] is None else _NORMALIZED,
    )
    return "\n".join([head, *model_card.details(config)])
