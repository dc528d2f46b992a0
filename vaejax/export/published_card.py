"""The model card of an export in a published form, README.md."""

from collections.abc import Mapping
from typing import Any

from vaejax.export import model_card
from vaejax.export.folder import MARK, ORIGINAL

_HEAD = """\
---
library_name: {library}
tags:
- vae
- autoencoder
- image
- video
- latent-diffusion
---
{mark}

# {name}

{description}

| | |
|---|---|
| pixels | (B, {p}, T, H, W) in [-1, 1]; T = {lengths}, H and W multiples of {s} |
| latents | (B, {c}, t, h, w); t = {latent_lengths}, h = H/{s}, w = W/{s} |
| parameters | {total}: encoder {encoder}, decoder {decoder} |
| weights | averaged (EMA), stored in {dtype} |
| fingerprint | `{fingerprint}` |

License: to be filled in by the publisher; that of the model it was made from applies

## Use

{use}
vaejax itself reads this export: `vaejax.load("{name}{file}")`, `--config.init`, `vaejax.evaluate --compare`.
"""
_DIFFUSERS = """\
```python
from diffusers import AutoencoderKLWan

vae = AutoencoderKLWan.from_pretrained("{name}")
```

`vae.config.latents_mean` and `latents_std` are {statistics}.
"""
_ORIGINAL = """\
`{file}` has the tensors under the names of Wan's own code, which loads it like the published file:

```python
import torch

state_dict = torch.load("{name}/{file}", weights_only=True)
```
"""


def text(name: str, config: Mapping[str, Any]) -> str:
    """Returns the text of the model card, as Markdown.

    Args:
      name: name of the export's folder.
      config: the record of the source (`source.record`), 'form' ('diffusers' or 'original') and 'rounding',
        the result of `verify.check_codec`.
    """
    is_original, known = config["form"] == "original", config["latents"]["mean"] is not None
    statistics = "those of the training latents" if known else "the defaults of diffusers"
    if config["latents"].get("inherited"):
        statistics = "those of the VAE that it was trained from"
    use = (_ORIGINAL if is_original else _DIFFUSERS).format(name=name, file=ORIGINAL, statistics=statistics)
    head = _HEAD.format(
        **model_card.facts(config),
        name=name,
        mark=MARK,
        library="pytorch" if is_original else "diffusers",
        use=use,
        file=f"/{ORIGINAL}" if is_original else "",
    )
    return "\n".join([head, *model_card.details(config)])
