"""The schema of a configuration: every key with its default, the values it accepts and what it means.

`defaults()` gives the mutable ConfigDict that a configuration file changes; `vaejax.config.check` turns it
into the frozen, typed `Config` that the program reads. docs/configuration.md is generated from this file.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from vaejax.config.accepts import (
    COUNT,
    ENTRIES,
    FLAG,
    FOLDERS,
    FROM_0,
    FROM_1,
    NATURAL,
    POSITIVE,
    SHARE,
    TEXT,
    UNIT,
    Accepts,
    is_whole,
    one_of,
    section,
    setting,
)
from vaejax.config.folders import Folders
from vaejax.config.loss_schema import LossConfig

# Sections whose keys the user chooses, each with an example of a value.
OPEN_SECTIONS = {"data.sources": '{"kind": "media", "path": "DIR"}', "data.buckets": '{"batch": 8}'}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The photos and clips, and how batches are cut from them."""

    media: str | tuple[str, ...] = setting("", FOLDERS, "Folders of photos and clips; replaces data.sources.")
    sources: Mapping[str, Mapping[str, Any]] = setting(
        {},
        ENTRIES,
        "Data sources by label: {kind: media, webdataset, parquet, manifest, huggingface, array_record, tfds,"
        " demo or synthetic; weight: relative share of samples; and the fields of that kind}.",
    )
    latents: str | tuple[str, ...] = setting(
        "",
        FOLDERS,
        "Folders of latents of data.media, one for each, that `vaejax encode` wrote with the model whose"
        " encoder is frozen; the encoder then does not run in training, and samples are not resampled.",
    )
    buckets: Mapping[str, Mapping[str, Any]] = setting(
        {},
        ENTRIES,
        "Sample shapes, named image_HxW or video_TxHxW: {batch: samples per batch over all devices, or 0 to"
        " turn the bucket off; weight: loss weight; every: number of updates from one batch to the next}.",
    )
    fps: float = setting(24.0, POSITIVE, "Frame rate of clip samples; clips are resampled by timestamp.")
    zoom: float = setting(
        1.0,
        FROM_1,
        "Largest random scale of a sample, relative to the scale at which it just covers the bucket.",
    )
    max_upscale: float = setting(
        1.0, POSITIVE, "Largest factor by which a sample is enlarged; a bucket skips media that need more."
    )
    min_quality: float = setting(
        0,
        Accepts(lambda v: 0 <= v <= 100, "a number from 0 to 100"),
        "Lowest estimated JPEG quality of photos to use; 0 takes all.",
    )
    hdr: str = setting("convert", one_of("convert", "skip"), "HDR media: converted to SDR, or left out.")
    scan: str = setting(
        "full",
        one_of("full", "headers"),
        "How new files are scanned: decoded whole, or by their headers alone, which leaves damage to be found"
        " in training.",
    )
    cuts: bool = setting(
        False,
        FLAG,
        "Whether the scan finds cuts in clips, which no sample then crosses; needs the extra scenes.",
    )
    filter: str = setting(
        "", TEXT, "SQL expression over the columns of a source that its files must match; '' takes all."
    )
    holdout: float = setting(0.05, SHARE, "Share of a media folder that is held out for evaluation.")
    workers: int = setting(4, NATURAL, "Processes that decode media; 0 decodes in threads.")
    prefetch: int = setting(1, COUNT, "Updates whose samples are decoded ahead.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The autoencoder."""

    family: str = setting(
        "vaejax", one_of("", "vaejax", "wan"), "Family of networks; '' takes the architecture of `init`."
    )
    size: str = setting(
        "base",
        one_of("tiny", "tiny_decoder", "small", "base", "large", "wan2.1", "wan2.2"),
        "Preset for the settings below that are empty or 0; 'wan' has 'wan2.1', 'wan2.2' and 'tiny'.",
    )
    widths: tuple[int, ...] = setting(
        (),
        Accepts(lambda v: all(is_whole(w) and w >= 1 for w in v), "whole numbers, each 1 or more, or ()"),
        "Channels of each level, highest resolution first.",
    )
    encoder_blocks: int = setting(0, NATURAL, "Residual blocks per level of the encoder.")
    decoder_blocks: int = setting(0, NATURAL, "Residual blocks per level of the decoder.")
    stem_factor: int = setting(
        0, one_of(0, 1, 2, 4), "Side in pixels of the blocks that the stem moves into channels."
    )
    pixel_channels: int = setting(
        3, COUNT, "Channels of a pixel: 3 for RGB, 4 for RGB and alpha; more than those of `init` widen it."
    )
    stem: str = setting(
        "haar", one_of("haar", "patch"), "Transform of the stem: Haar wavelet, or plain pixels."
    )
    latent_channels: int = setting(16, COUNT, "Channels of the latent.")
    spatial_factor: int = setting(8, one_of(4, 8, 16), "Pixels per latent pixel, in height and in width.")
    temporal_factor: int = setting(
        4, one_of(1, 2, 4, 8), "Frames per latent frame; the first latent frame holds only one frame."
    )
    conv: str = setting(
        "smc", one_of("smc", "groupnorm"), "Self-modulated convolutions, or group normalization."
    )
    film: bool = setting(False, FLAG, "Scale and shift activations differently for images and videos (FiLM).")
    pixel_norm: bool = setting(
        False, FLAG, "RMS normalization of each pixel, over its channels, in every block."
    )
    attention: bool = setting(False, FLAG, "Self-attention within each frame at the lowest resolution.")
    qk_norm: bool = setting(True, FLAG, "RMS normalization of the attention's queries and keys.")
    remat: tuple[int, ...] = setting(
        (),
        Accepts(
            lambda v: all(is_whole(i) and i >= 0 for i in v), "a tuple of levels; 0 is the highest resolution"
        ),
        "Levels that the backward pass recomputes to save memory; 0 is the highest resolution.",
    )
    dtype: str = setting("float32", one_of("float32", "bfloat16"), "Compute dtype; parameters are float32.")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer of the autoencoder."""

    train: tuple[str, ...] = setting(
        ("encoder", "decoder"),
        Accepts(
            lambda v: 0 < len(v) == len(set(v)) and set(v) <= {"encoder", "decoder"},
            "('encoder', 'decoder'), ('encoder',) or ('decoder',)",
        ),
        "Halves of the autoencoder that train; the other half keeps the parameters of `init` or `teacher`.",
    )
    learning_rate: float = setting(3e-4, POSITIVE, "Peak learning rate of Adam.")
    schedule: str = setting("cosine", one_of("cosine", "constant"), "Learning rate after warm-up.")
    warmup: int = setting(1000, NATURAL, "Updates of linear warm-up.")
    final_fraction: float = setting(
        0.02, UNIT, "Final learning rate of the cosine schedule, as a share of the peak."
    )
    b1: float = setting(0.9, SHARE, "Decay of Adam's first moment.")
    b2: float = setting(0.99, SHARE, "Decay of Adam's second moment.")
    weight_decay: float = setting(0.0, FROM_0, "Decoupled weight decay of kernels.")
    fan_in: int = setting(
        0,
        NATURAL,
        "Kernels with a larger fan-in get a proportionally lower learning rate; 0 disables this.",
    )
    agc: float = setting(0.1, FROM_0, "λ of adaptive gradient clipping; 0 turns it off.")
    clip_norm: float = setting(
        0.0, FROM_0, "Largest norm of all gradients together, instead of `agc`; 0 turns it off."
    )
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
    rollbacks: int = setting(5, NATURAL, "Allowed rollbacks to one checkpoint; the next one fails the run.")
    stall: float = setting(
        600,
        FROM_0,
        "Seconds without progress after which the run aborts; ten times as long during start-up, compilation,"
        " evaluation and saving; 0 never aborts.",
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The device mesh; the product of its axis sizes is the number of devices."""

    data: int = setting(0, NATURAL, "Data parallelism; 0 takes the devices that the other axes leave.")
    fsdp: int = setting(1, COUNT, "Shards of parameters and optimizer state; also splits the batch.")
    space: int = setting(1, COUNT, "Splits the batch if divisible by the device count, else frame height.")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept."""

    every: int = setting(1000, COUNT, "Updates between checkpoints.")
    keep: int = setting(3, COUNT, "Number of latest checkpoints to keep.")
    best: str = setting(
        "",
        TEXT,
        "Score, BUCKET/NAME or mean/NAME, by which the best checkpoint is kept as well; a '-' in front means"
        " that lower is better.",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training."""

    every: int = setting(1000, COUNT, "Updates between evaluations.")
    samples: int = setting(32, COUNT, "Held-out samples per bucket.")
    max_drift: float = setting(
        0.0,
        FROM_0,
        "Drift of the latents from those of `init` or `teacher`, in standard deviations, above which the run"
        " ends; 0 never ends it.",
    )
    linear_samples: int = setting(
        256, NATURAL, "Training samples per bucket to fit the linear codec, a PCA baseline; 0 omits it."
    )
    latent_samples: int = setting(
        256,
        NATURAL,
        "Training samples per bucket for the latent statistics stored with the last checkpoint; 0 leaves"
        " these statistics to vaejax evaluate.",
    )


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """The diffusion probe during training: a small diffusion model trained on latents of the EMA model."""

    every: int = setting(0, NATURAL, "Updates between probes; 0 never probes.")
    bucket: str = setting("", TEXT, "Bucket to probe; '' takes the first.")
    preset: str = setting(
        "cpu", one_of("cpu", "gpu", "standard"), "Size and training budget of the diffusion model."
    )
    seeds: int = setting(1, COUNT, "Diffusion models, with different seeds, whose scores are averaged.")


@dataclasses.dataclass(frozen=True)
class PanelsConfig:
    """Panels of reconstructions."""

    every: int = setting(1000, COUNT, "Updates between panels.")
    samples: int = setting(4, COUNT, "Samples per panel.")


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Services that show a run, besides the files in its folder."""

    wandb: str = setting(
        "", TEXT, "Project of Weights & Biases, PROJECT or ENTITY/PROJECT, that shows the run; '' for none."
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked configuration of a run."""

    seed: int = setting(
        0,
        Accepts(lambda v: is_whole(v) and 0 <= v < 2**31, "a whole number of at least 0 and below 2**31"),
        "Random seed of initialization, order of samples and noise.",
    )
    steps: int = setting(100_000, COUNT, "Updates of the run.")
    log_every: int = setting(50, COUNT, "Updates between logged metrics.")
    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    loss: LossConfig = section(LossConfig)
    optim: OptimConfig = section(OptimConfig)
    ema: EmaConfig = section(EmaConfig)
    recovery: RecoveryConfig = section(RecoveryConfig)
    init: str = setting(
        "", TEXT, "Run (its EMA parameters), export or published VAE that this run starts from."
    )
    teacher: str = setting(
        "",
        TEXT,
        "Run, export or published VAE that supplies the frozen half; `model` describes the other"
        " half, which learns from scratch.",
    )
    mesh: MeshConfig = section(MeshConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    eval: EvalConfig = section(EvalConfig)
    probe: ProbeConfig = section(ProbeConfig)
    panels: PanelsConfig = section(PanelsConfig)
    report: ReportConfig = section(ReportConfig)
    profile: tuple[int, int] = setting(
        (0, 0),
        Accepts(
            lambda v: len(v) == 2 and all(is_whole(n) and n >= 0 for n in v),
            "(FIRST, COUNT), two whole numbers, each 0 or more",
        ),
        "(FIRST, COUNT): an XProf trace of COUNT updates, beginning with update FIRST, counted from 0.",
    )

    @property
    def student(self) -> str:
        """The half, 'encoder' or 'decoder', that is distilled from `teacher`; '' without a teacher."""
        return self.optim.train[0] if self.teacher else ""

    def to_dict(self) -> dict[str, Any]:
        """The configuration as nested dictionaries, in the form of config.json."""
        return dataclasses.asdict(self)


def defaults() -> Any:
    """Returns a ConfigDict with every key at its default, for a configuration file to change."""
    values = dataclasses.asdict(Config())
    for name in ("media", "latents"):  # a ConfigDict keeps the types of values
        values["data"][name] = FieldReference("", field_type=Folders)
    return ConfigDict(values)


def is_section(field: dataclasses.Field) -> bool:
    """Whether a field of a section holds another section."""
    return "accepts" not in field.metadata
