"""The adversarial loss: GAN losses, regularizers, and the training of the discriminators."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vaejax.errors import InputError
from vaejax.losses.crops import random_frames
from vaejax.models.discriminator import Discriminator, DiscriminatorDesign, power_iteration

Logits = Float[Array, "..."]
MEAN_DECAY = 0.999  # decay per update of LeCam's moving averages
ACCURACY_DECAY = 0.95  # decay per update of the accuracy's moving average


def hinge(real: Logits, fake: Logits) -> Float[Array, ""]:
    """Computes the discriminator's hinge loss (arXiv 1705.02894), a mean over logits of any shape."""
    return jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()


def logistic(real: Logits, fake: Logits) -> Float[Array, ""]:
    """Computes the discriminator's cross-entropy (arXiv 1406.2661), a mean over logits of any shape."""
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


# Name of a GAN loss -> the discriminator's loss and the generator's, as functions of logits. The generator is
# the autoencoder. With 'logistic' the generator's loss is linear, as in VQGAN (arXiv 2012.09841).
LOSSES = {
    "hinge": (hinge, lambda fake: -fake.mean()),
    "logistic": (logistic, lambda fake: -fake.mean()),
    "non_saturating": (logistic, lambda fake: jax.nn.softplus(-fake).mean()),
}


def lecam(
    real: Logits, fake: Logits, real_mean: Float[Array, ""], fake_mean: Float[Array, ""]
) -> Float[Array, ""]:
    """Computes the LeCam regularizer (arXiv 2104.03310), which keeps real and fake logits close.

    It penalizes real logits above the average fake logit, and fake logits below the average real logit.

    Args:
      real: logits of real samples, any shape.
      fake: logits of reconstructions, any shape.
      real_mean: moving average () of real logits.
      fake_mean: moving average () of fake logits.

    Returns:
      The sum () of the two mean squared excesses.
    """
    above = jnp.square(jax.nn.relu(real - fake_mean)).mean()
    return above + jnp.square(jax.nn.relu(real_mean - fake)).mean()


def r1(discriminate: Callable[[jax.Array], jax.Array], x: Float[Array, "B T H W C"]) -> Float[Array, ""]:
    """Computes the R1 penalty (arXiv 1801.04406) of a patch discriminator: |d(sum of logits)/dx|² / n.

    Dividing by the number n of logits keeps the penalty comparable across shapes. With one logit per sample,
    n is the batch size and the penalty equals the paper's.

    Args:
      discriminate: function from x to logits (B, ...).
      x: real clips (B, T, H, W, C) in [-1, 1].

    Returns:
      Penalty ().
    """
    logits, pull = jax.vjp(discriminate, x)
    (gradient,) = pull(jnp.ones_like(logits))
    return jnp.square(gradient).sum() / logits.size


@flax.struct.dataclass
class DiscriminatorState:
    """The training state of one discriminator. Checkpoints store the fields by these names.

    Attributes:
      params: parameters of the discriminator.
      spectral: singular vectors of the kernels, see `power_iteration`; {} without spectral normalization.
      optimizer: optax state.
      real_mean, fake_mean: moving averages () of the logits of real samples and of reconstructions, for
        LeCam.
      accuracy: moving average () of the share of logits with the right sign: positive for real samples,
        negative for reconstructions.
    """

    params: Any
    spectral: Any
    optimizer: optax.OptState
    real_mean: Float[Array, ""]
    fake_mean: Float[Array, ""]
    accuracy: Float[Array, ""]


@flax.struct.dataclass
class LogitStats:
    """Statistics of one discriminator's logits, summed over the batches of an update.

    Attributes:
      real, fake: sums () of each batch's mean logit of real samples and of reconstructions.
      accuracy: sum () of each batch's share of logits with the right sign.
      count: number () of batches.
    """

    real: Float[Array, ""]
    fake: Float[Array, ""]
    accuracy: Float[Array, ""]
    count: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The discriminators and the settings of their training.

    Attributes:
      discriminators: networks by name: 'image' sees single frames, 'video' sees clips and skips images.
      optimizer: optimizer of each discriminator.
      loss: key of LOSSES.
      lecam, r1: weights of the regularizers in the discriminator's loss; 0 turns one off.
      frames: maximum number of frames per clip that 'image' sees, drawn anew for each batch.
      pause_above: accuracy above which a discriminator's parameters stay fixed.
      start: first update at which the term adds to the autoencoder's gradient.
      warmup: number of updates before `start` in which discriminators already train.
      ramp: number of updates over which the term's weight grows from 0 to its full value.
      adaptive: upper bound of `adaptive_weight`; 0 keeps the weight constant.
      pixel_channels: channels C of the pixels, all of which the discriminators see.
    """

    discriminators: Mapping[str, Discriminator]
    optimizer: optax.GradientTransformation
    loss: str
    lecam: float
    r1: float
    frames: int
    pause_above: float
    start: int
    warmup: int
    ramp: int
    adaptive: float
    pixel_channels: int = 3

    @classmethod
    def of(cls, config: Any, buckets: Sequence[Any]) -> "Adversary | None":
        """Builds the adversary of a run, without the 'video' discriminator if no bucket has clips.

        Args:
          config: whole configuration.
          buckets: buckets of the run, with an attribute `frames`.

        Returns:
          The adversary, or None if loss.weights.adversarial is 0.

        Raises:
          InputError: if 'video' is the only discriminator and no bucket has clips.
        """
        if not config.loss.weights.adversarial:
            return None
        settings = config.loss.adversarial
        has_clips = any(bucket.frames > 1 for bucket in buckets)
        names = [name for name in settings.discriminators if name == "image" or has_clips]
        if not names:
            raise InputError(
                f"loss.adversarial.discriminators = {settings.discriminators}, but no bucket has clips;"
                " accepted: ('image',), or a bucket video_TxHxW in data.buckets"
            )
        design = DiscriminatorDesign(settings.kind, settings.width, settings.spectral_norm)
        return cls(
            discriminators={name: Discriminator(design, temporal=name == "video") for name in names},
            optimizer=optax.adam(settings.learning_rate, settings.b1, settings.b2),
            loss=settings.loss,
            lecam=settings.lecam,
            r1=settings.r1,
            frames=settings.frames,
            pause_above=settings.pause_above,
            start=settings.start,
            warmup=settings.warmup,
            ramp=settings.ramp,
            adaptive=settings.adaptive,
            pixel_channels=config.model.pixel_channels,
        )

    def init(self, key: PRNGKeyArray) -> dict[str, DiscriminatorState]:
        """Initializes every discriminator, including the singular vectors for spectral normalization."""
        states = {}
        for name, module in self.discriminators.items():
            frames = 5 if module.temporal else 1
            variables = module.init(key, jnp.zeros((1, frames, 32, 32, self.pixel_channels)))
            params, spectral = variables["params"], variables.get("spectral", {})
            states[name] = DiscriminatorState(
                params=params,
                spectral=power_iteration(params, spectral, squarings=5),
                optimizer=self.optimizer.init(params),
                real_mean=jnp.zeros(()),
                fake_mean=jnp.zeros(()),  # a second array, because donating one buffer twice is an error
                accuracy=jnp.full((), 0.5, jnp.float32),
            )
        return states

    def is_training(self, step: int) -> bool:
        """Returns whether the discriminators train at update `step`, counted from 0."""
        return step >= self.start - self.warmup

    def weight_fraction(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Returns the fraction of the term's weight: 0 before `start`, then rising to 1 in `ramp` updates."""
        return jnp.clip((step - self.start + 1) / self.ramp, 0.0, 1.0)

    def zeros(self, states: Mapping[str, DiscriminatorState]) -> tuple[dict[str, Any], dict[str, LogitStats]]:
        """Returns zero gradients and zero logit statistics of every discriminator, to accumulate into."""
        gradients = {name: jax.tree.map(jnp.zeros_like, state.params) for name, state in states.items()}
        stats = {name: LogitStats(*(jnp.zeros(()) for _ in range(4))) for name in states}
        return gradients, stats

    def gradients(
        self,
        states: Mapping[str, DiscriminatorState],
        x: Float[Array, "B T H W C"],
        x_hat: Float[Array, "B T H W C"],
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "B T H W C"], dict[str, Any], dict[str, LogitStats], dict[str, Float[Array, ""]]]:
        """Computes the gradients of the discriminators' and of the generator's losses for one batch.

        Each discriminator runs forward once on x, once more on x for the R1 penalty if that is on, and once
        on x_hat; 'video' skips images. The forward pass on x_hat serves two losses. The discriminator's loss
        is differentiated with respect to the discriminator's parameters, the generator's loss with respect
        to x_hat.

        Args:
          states: states of the discriminators by name.
          x: pixels (B, T, H, W, C) in [-1, 1].
          x_hat: reconstruction of x, of the same shape.
          key: random key that chooses the frames that 'image' sees.

        Returns:
          The gradient of the sum of generator losses with respect to x_hat; by name, for each discriminator
          that ran, the gradients of its parameters and the statistics of its logits; and scalar metrics:
          'adversarial_NAME' (the generator's loss), 'discriminator_NAME' (the discriminator's loss) and, if
          the R1 weight is not 0, 'r1_NAME' (the R1 penalty).
        """
        total, gradients, stats, terms = jnp.zeros_like(x_hat), {}, {}, {}
        for name, module in self.discriminators.items():
            if module.temporal and x.shape[1] == 1:
                continue
            frames = None if module.temporal else random_frames(key, x.shape[1], self.frames)
            # By default a TPU multiplies float32 numbers as bfloat16.
            with jax.default_matmul_precision("tensorfloat32"):
                of_one = self._gradients_of_one(module, states[name], x, x_hat, frames)
            dx_hat, gradients[name], stats[name], losses = of_one
            total += dx_hat
            terms |= {f"{loss}_{name}": value for loss, value in losses.items()}
        return total, gradients, stats, terms

    def _gradients_of_one(
        self,
        module: Discriminator,
        state: DiscriminatorState,
        x: Float[Array, "B T H W C"],
        x_hat: Float[Array, "B T H W C"],
        frames: Int[Array, " n"] | None,
    ) -> tuple[Float[Array, "B T H W C"], Any, LogitStats, dict[str, Float[Array, ""]]]:
        """Computes `gradients` for one discriminator, which sees the frames with indices `frames`, or all."""

        def discriminate(params: Any, x: jax.Array) -> Any:
            x = x if frames is None else x[:, frames]
            return module.apply({"params": params, "spectral": state.spectral}, x)

        discriminator_loss, generator_loss = LOSSES[self.loss]

        def loss(real, fake):
            value = discriminator_loss(real, fake)
            if self.lecam:
                value += self.lecam * lecam(real, fake, state.real_mean, state.fake_mean)
            return value

        real, pull_real = jax.vjp(lambda params: discriminate(params, x), state.params)
        fake, pull_fake = jax.vjp(discriminate, state.params, x_hat)
        value, (d_real, d_fake) = jax.value_and_grad(loss, (0, 1))(real, fake)
        gradients = jax.tree.map(jnp.add, pull_real(d_real)[0], pull_fake(d_fake)[0])
        generator, d_fake = jax.value_and_grad(generator_loss)(fake)
        dx_hat = pull_fake(d_fake)[1]
        losses = {"adversarial": generator, "discriminator": value}
        if self.r1:
            penalty, d_params = jax.value_and_grad(
                lambda params: r1(functools.partial(discriminate, params), x)
            )(state.params)
            gradients = jax.tree.map(lambda g, p: g + 0.5 * self.r1 * p, gradients, d_params)
            losses["r1"] = penalty
        accuracy = 0.5 * ((real > 0).mean() + (fake < 0).mean())
        return dx_hat, gradients, LogitStats(real.mean(), fake.mean(), accuracy, jnp.ones(())), losses

    def update(self, state: DiscriminatorState, gradients: Any, stats: LogitStats) -> DiscriminatorState:
        """Updates the moving averages of one discriminator and, unless it pauses, its parameters.

        Args:
          state: state before the update.
          gradients: gradients of the parameters, summed over the update's batches.
          stats: statistics of the logits. With a count of 0 the whole state stays unchanged, because the
            update had no batch for this discriminator.

        Returns:
          The state after the update.
        """
        active = stats.count > 0
        count = jnp.maximum(stats.count, 1)

        def average(old, total, decay):
            return jnp.where(active, decay * old + (1 - decay) * total / count, old)

        # LeCam's averages start at 0 and would keep pulling the logits to 0, so early updates weigh more.
        steps = optax.tree.get(state.optimizer, "count")
        decay = jnp.minimum(MEAN_DECAY, (1.0 + steps) / (10.0 + steps))
        accuracy = average(state.accuracy, stats.accuracy, ACCURACY_DECAY)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        new = dataclasses.replace(
            state, params=params, spectral=power_iteration(params, state.spectral), optimizer=optimizer
        )
        trains = active & (state.accuracy <= self.pause_above)
        new = jax.tree.map(functools.partial(jnp.where, trains), new, state)
        return dataclasses.replace(
            new,
            real_mean=average(state.real_mean, stats.real, decay),
            fake_mean=average(state.fake_mean, stats.fake, decay),
            accuracy=accuracy,
        )


def adaptive_weight(
    reconstruction: Float[Array, "..."], adversarial: Float[Array, "..."], limit: float
) -> Float[Array, ""]:
    """Computes VQGAN's adaptive weight (arXiv 2012.09841): the ratio of two gradients' norms.

    Args:
      reconstruction: gradient of the non-adversarial terms that are computed from the reconstruction, with
        respect to the kernel of the decoder's last layer.
      adversarial: gradient of the adversarial term with respect to the same kernel.
      limit: upper bound of the weight.

    Returns:
      Weight () in [0, limit].
    """
    ratio = jnp.linalg.norm(reconstruction) / (jnp.linalg.norm(adversarial) + 1e-4)
    return jnp.clip(ratio, 0.0, limit)


def alarm(name: str, accuracy: float) -> str | None:
    """Returns a one-line warning if a discriminator is too strong or has collapsed, else None."""
    if accuracy > 0.98:
        return (
            f"the {name} discriminator is too strong (accuracy above 0.98): lower"
            " loss.adversarial.learning_rate"
        )
    if accuracy < 0.52:
        return (
            f"the {name} discriminator does not discriminate (accuracy below 0.52): it may have collapsed; if"
            " this persists, lower loss.adversarial.learning_rate or start from an earlier checkpoint"
        )
    return None
