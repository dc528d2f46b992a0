"""The adversarial loss: both sides' losses, their regularizers, and one forward pass for both gradients."""

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
MEAN_DECAY = 0.999  # of LeCam's moving averages, per update
ACCURACY_DECAY = 0.95  # of the accuracy's moving average, per update


def hinge(real: Logits, fake: Logits) -> Float[Array, ""]:
    """Computes the discriminator's hinge loss (arXiv 1705.02894)."""
    return jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()


def logistic(real: Logits, fake: Logits) -> Float[Array, ""]:
    """Computes the discriminator's cross-entropy (arXiv 1406.2661)."""
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


# name: (loss of the discriminator, loss of the generator). With 'logistic' the generator's loss is linear, as
# in VQGAN (arXiv 2012.09841).
LOSSES = {
    "hinge": (hinge, lambda fake: -fake.mean()),
    "logistic": (logistic, lambda fake: -fake.mean()),
    "non_saturating": (logistic, lambda fake: jax.nn.softplus(-fake).mean()),
}


def lecam(
    real: Logits, fake: Logits, real_mean: Float[Array, ""], fake_mean: Float[Array, ""]
) -> Float[Array, ""]:
    """Computes the LeCam regularizer (arXiv 2104.03310): the distance of logits to the other side's average.

    Args:
      real: logits of real samples, any shape.
      fake: logits of reconstructions, any shape.
      real_mean: () moving average of real logits.
      fake_mean: () moving average of fake logits.
    """
    above = jnp.square(jax.nn.relu(real - fake_mean)).mean()
    return above + jnp.square(jax.nn.relu(real_mean - fake)).mean()


def r1(discriminate: Callable[[jax.Array], jax.Array], x: Float[Array, "B T H W C"]) -> Float[Array, ""]:
    """Computes the R1 penalty (arXiv 1801.04406) of a patch discriminator: |d(sum of logits)/dx|² / logits.

    Dividing by the number of logits gives every logit the same penalty at every shape. With one logit per
    sample the penalty equals the paper's.

    Args:
      discriminate: maps x to logits (B, ...).
      x: (B, T, H, W, C) in [-1, 1].

    Returns:
      () mean over the batch.
    """
    logits, pull = jax.vjp(discriminate, x)
    (gradient,) = pull(jnp.ones_like(logits))
    return jnp.square(gradient).sum() / logits.size


@flax.struct.dataclass
class DiscriminatorState:
    """The training state of one discriminator. Checkpoints store the fields by these names.

    Attributes:
      params: its parameters.
      spectral: singular vectors of its kernels, see `power_iteration`.
      optimizer: optax state.
      real_mean, fake_mean: () LeCam's moving averages of the logits.
      accuracy: () moving average of the share of logits with the right sign.
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
      real, fake: () sums of the batches' mean logits.
      accuracy: () sum of the batches' accuracies.
      count: () number of batches.
    """

    real: Float[Array, ""]
    fake: Float[Array, ""]
    accuracy: Float[Array, ""]
    count: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The discriminators and the settings of their training.

    Attributes:
      discriminators: 'image' sees every frame alone, 'video' sees clips and skips images.
      optimizer: of every discriminator.
      loss: a key of LOSSES.
      lecam, r1: weights of the regularizers in the discriminator's loss; 0 turns one off.
      frames: the maximum number of frames per clip that 'image' sees, drawn anew for each batch.
      pause_above: a discriminator pauses while its accuracy exceeds this.
      start: the first update whose generator gradient includes the term.
      warmup: number of updates before `start` in which discriminators already train.
      ramp: number of updates over which the term's weight grows from 0 to its full value.
      adaptive: upper bound of `adaptive_weight`; 0 keeps the weight constant.
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

    @classmethod
    def of(cls, config: Any, buckets: Sequence[Any]) -> "Adversary | None":
        """Builds the adversary of a run, without the discriminators that no bucket feeds.

        Args:
          config: the whole configuration.
          buckets: the run's buckets; only `frames` of each is read.

        Returns:
          The adversary, or None if loss.weights.adversarial is 0.

        Raises:
          InputError: if no discriminator is left.
        """
        if not config.loss.weights.adversarial:
            return None
        settings = config.loss.adversarial
        has_clips = any(bucket.frames > 1 for bucket in buckets)
        names = [name for name in settings.discriminators if name == "image" or has_clips]
        if not names:
            raise InputError(
                f"loss.adversarial.discriminators = {settings.discriminators}, but no bucket has clips;"
                " accepted: ('image',)"
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
        )

    def init(self, key: PRNGKeyArray) -> dict[str, DiscriminatorState]:
        """Initializes every discriminator, with converged singular vectors."""
        states = {}
        for name, module in self.discriminators.items():
            variables = module.init(key, jnp.zeros((1, 5 if module.temporal else 1, 32, 32, 3)))
            params, spectral = variables["params"], variables.get("spectral", {})
            states[name] = DiscriminatorState(
                params=params,
                spectral=power_iteration(params, spectral, squarings=5),
                optimizer=self.optimizer.init(params),
                real_mean=jnp.zeros(()),
                fake_mean=jnp.zeros(()),  # not the same array: donating one buffer twice is an error
                accuracy=jnp.full((), 0.5, jnp.float32),
            )
        return states

    def is_training(self, step: int) -> bool:
        """Returns whether the discriminators train at a step."""
        return step >= self.start - self.warmup

    def weight_fraction(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Returns the fraction of the term's weight at a step: 0 before `start`, then up to 1 over `ramp`."""
        return jnp.clip((step - self.start + 1) / self.ramp, 0.0, 1.0)

    def zeros(self, states: Mapping[str, DiscriminatorState]) -> tuple[dict[str, Any], dict[str, LogitStats]]:
        """Returns empty accumulators: zero gradients and zero statistics of every discriminator."""
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
        """Computes both sides' gradients of a batch, for every discriminator that accepts its shape.

        Each discriminator runs forward once on x and once on x_hat. Two pullbacks of that pass give its
        parameters' gradient from the discriminator's loss and x_hat's gradient from the generator's loss.

        Args:
          states: states of the discriminators by name.
          x: (B, T, H, W, 3) in [-1, 1].
          x_hat: its reconstruction, of the same shape.
          key: draws the frames that 'image' sees.

        Returns:
          d(sum of generator losses)/d(x_hat); gradients of each discriminator's parameters; statistics of
          each one's logits; and terms, each (): 'adversarial_NAME' (generator's loss), 'discriminator_NAME'
          (discriminator's loss) and, if on, 'r1_NAME'.
        """
        total, gradients, stats, terms = jnp.zeros_like(x_hat), {}, {}, {}
        for name, module in self.discriminators.items():
            if module.temporal and x.shape[1] == 1:
                continue
            frames = None if module.temporal else random_frames(key, x.shape[1], self.frames)
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
        """Computes `gradients` of one discriminator, on the given frames only."""

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
        """Updates one discriminator: its parameters unless it pauses, and its moving averages.

        Args:
          state: before the update.
          gradients: of its parameters, summed over the update's batches.
          stats: of its logits; a count of 0 leaves the whole state unchanged.

        Returns:
          The state after the update.
        """
        active = stats.count > 0
        count = jnp.maximum(stats.count, 1)

        def average(old, total, decay):
            return jnp.where(active, decay * old + (1 - decay) * total / count, old)

        # The averages start at 0 and would pull logits there for long, so early updates weigh more.
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
    """Computes VQGAN's adaptive weight (arXiv 2012.09841): |d rec| / |d adv| at the last decoder layer.

    Args:
      reconstruction: gradient of all other terms at the last layer's kernel.
      adversarial: gradient of the adversarial term at the same kernel.
      limit: upper bound of the weight.
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
        return f"the {name} discriminator does not discriminate (accuracy below 0.52): it may have collapsed"
    return None
