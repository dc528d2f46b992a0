"""The adversarial game: losses of both sides, what steadies them, and one forward pass for both gradients."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vaejax.losses.glimpse import some_frames
from vaejax.models.discriminator import Discriminator, power_iteration

Logits = jax.Array
MEAN_DECAY = 0.999  # LeCam's averages, per update
ACCURACY_DECAY = 0.95


def hinge(real: Logits, fake: Logits) -> jax.Array:
    """The discriminator's hinge loss (arXiv 1705.02894)."""
    return jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()


def logistic(real: Logits, fake: Logits) -> jax.Array:
    """The discriminator's cross-entropy (arXiv 1406.2661)."""
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


# name: (the discriminator's loss, the generator's); logistic's is linear, as VQGAN's (arXiv 2012.09841) is
LOSSES = {
    "hinge": (hinge, lambda fake: -fake.mean()),
    "logistic": (logistic, lambda fake: -fake.mean()),
    "non_saturating": (logistic, lambda fake: jax.nn.softplus(-fake).mean()),
}


def lecam(real: Logits, fake: Logits, real_mean: jax.Array, fake_mean: jax.Array) -> jax.Array:
    """LeCam's regulariser (arXiv 2104.03310): logits must not leave the other side's average far behind."""
    above = jnp.square(jax.nn.relu(real - fake_mean)).mean()
    return above + jnp.square(jax.nn.relu(real_mean - fake)).mean()


def r1(judge, x: jax.Array) -> jax.Array:
    """R1 (arXiv 1801.04406) of a patch discriminator: |d(sum of logits)/dx|² / logits, averaged over B.

    Divided by the number of logits a sample, a logit's penalty is the same at every shape; with one logit a
    sample it is the paper's.
    """
    logits, pull = jax.vjp(judge, x)
    (gradient,) = pull(jnp.ones_like(logits))
    return jnp.square(gradient).sum() / logits.size


@flax.struct.dataclass
class DiscriminatorState:
    """The state of one discriminator.

    Attributes:
      params, spectral: its variables.
      optimizer: optax state.
      real_mean, fake_mean: () LeCam's averages of its logits.
      accuracy: () average share of logits on the right side of 0.
    """

    params: Any
    spectral: Any
    optimizer: optax.OptState
    real_mean: jax.Array
    fake_mean: jax.Array
    accuracy: jax.Array


@flax.struct.dataclass
class LogitStats:
    """What an update has seen of one discriminator's logits, summed over its batches.

    Attributes:
      real, fake, accuracy: () sums of the batches' means.
      count: () batches.
    """

    real: jax.Array
    fake: jax.Array
    accuracy: jax.Array
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The rules of the game.

    Attributes:
      discriminators: 'image' judges every frame alone, 'video' judges clips (not images).
      optimizer: of every discriminator.
      loss: a key of LOSSES.
      lecam, r1: weights in the discriminator's loss; 0 leaves them out.
      frames: the most frames of a clip that 'image' sees, drawn anew each time.
      pause_above: a discriminator of this accuracy waits until it is worse.
      start: the first update at which the term counts for the generator.
      warmup: updates before that in which the discriminators learn already.
      ramp: updates in which its weight grows to the whole.
      adaptive: the largest adaptive weight (`adaptive_weight`); 0 keeps the weight constant.
    """

    discriminators: Mapping[str, Discriminator]
    optimizer: optax.GradientTransformation
    loss: str = "hinge"
    lecam: float = 0.0
    r1: float = 0.0
    frames: int = 4
    pause_above: float = 1.0
    start: int = 0
    warmup: int = 0
    ramp: int = 1
    adaptive: float = 0.0

    def init(self, key: jax.Array) -> dict[str, DiscriminatorState]:
        """The discriminators at the start, their singular vectors settled."""
        opponents = {}
        for name, module in self.discriminators.items():
            variables = module.init(key, jnp.zeros((1, 5 if module.temporal else 1, 32, 32, 3)))
            params, spectral = variables["params"], variables.get("spectral", {})
            opponents[name] = DiscriminatorState(
                params,
                power_iteration(params, spectral, squarings=5),
                self.optimizer.init(params),
                jnp.zeros(()),
                jnp.zeros(()),  # not the same array: donating one buffer twice is an error
                jnp.full((), 0.5, jnp.float32),
            )
        return opponents

    def plays(self, step: int) -> bool:
        """Whether the discriminators take part at a step."""
        return step >= self.start - self.warmup

    def share(self, step: jax.Array) -> jax.Array:
        """The share of the adversarial weight at a step: 0 before `start`, then up to 1 in `ramp` updates."""
        return jnp.clip((step - self.start + 1) / self.ramp, 0.0, 1.0)

    def zeros(self, opponents: Mapping[str, DiscriminatorState]) -> tuple[dict, dict[str, LogitStats]]:
        """Gradients and observations of 0, to add to."""
        gradients = {name: jax.tree.map(jnp.zeros_like, one.params) for name, one in opponents.items()}
        observed = {name: LogitStats(*(jnp.zeros(()) for _ in range(4))) for name in opponents}
        return gradients, observed

    def gradients(
        self, opponents: Mapping[str, DiscriminatorState], x: jax.Array, x_hat: jax.Array, key: jax.Array
    ):
        """Lets every discriminator that takes this shape judge a batch.

        One forward pass over x and one over x_hat give both sides' gradients: each judgement is pulled back
        once with the discriminator's cotangent, to its parameters, and once with the generator's, to x_hat.

        Args:
          opponents: the discriminators.
          x: (B, T, H, W, 3) in [-1, 1].
          x_hat: its reconstruction.
          key: draws frames.

        Returns:
          d(sum of generator losses)/dx_hat; {name: gradient of its parameters}; {name: LogitStats};
          terms, each (): 'adversarial_NAME' and 'discriminator_NAME', the generator's and the discriminator's
          loss, and 'r1_NAME' where it counts.
        """
        total, gradients, observed, terms = jnp.zeros_like(x_hat), {}, {}, {}
        for name, module in self.discriminators.items():
            if module.temporal and x.shape[1] == 1:
                continue
            glimpse = None if module.temporal else some_frames(key, x.shape[1], self.frames)
            sides = _judge(self, module, opponents[name], x, x_hat, glimpse)
            dx_hat, gradients[name], observed[name], losses = sides
            total += dx_hat
            terms |= {f"{loss}_{name}": value for loss, value in losses.items()}
        return total, gradients, observed, terms

    def update(self, one: DiscriminatorState, gradients: Any, observed: LogitStats) -> DiscriminatorState:
        """One discriminator after an update: its step, unless it waits, its singular vectors and averages."""
        seen = observed.count > 0
        count = jnp.maximum(observed.count, 1)

        def average(old, total, decay):
            return jnp.where(seen, decay * old + (1 - decay) * total / count, old)

        # Averages of 0 at the start would pull logits to 0 for long: the first updates count for more.
        steps = optax.tree.get(one.optimizer, "count")
        decay = jnp.minimum(MEAN_DECAY, (1.0 + steps) / (10.0 + steps))
        accuracy = average(one.accuracy, observed.accuracy, ACCURACY_DECAY)
        updates, optimizer = self.optimizer.update(gradients, one.optimizer, one.params)
        params = optax.apply_updates(one.params, updates)
        new = one.replace(params=params, spectral=power_iteration(params, one.spectral), optimizer=optimizer)
        trains = seen & (one.accuracy <= self.pause_above)
        new = jax.tree.map(functools.partial(jnp.where, trains), new, one)
        return new.replace(
            real_mean=average(one.real_mean, observed.real, decay),
            fake_mean=average(one.fake_mean, observed.fake, decay),
            accuracy=accuracy,
        )


def _judge(rules: Adversary, module: Discriminator, one: DiscriminatorState, x, x_hat, glimpse):
    def judge(params, x):
        x = x if glimpse is None else x[:, glimpse]
        return module.apply({"params": params, "spectral": one.spectral}, x)

    discriminator_loss, generator_loss = LOSSES[rules.loss]

    def loss(real, fake):
        value = discriminator_loss(real, fake)
        if rules.lecam:
            value += rules.lecam * lecam(real, fake, one.real_mean, one.fake_mean)
        return value

    real, pull_real = jax.vjp(lambda params: judge(params, x), one.params)
    fake, pull_fake = jax.vjp(judge, one.params, x_hat)
    value, (d_real, d_fake) = jax.value_and_grad(loss, (0, 1))(real, fake)
    gradients = jax.tree.map(jnp.add, pull_real(d_real)[0], pull_fake(d_fake)[0])
    generator, d_fake = jax.value_and_grad(generator_loss)(fake)
    dx_hat = pull_fake(d_fake)[1]
    losses = {"adversarial": generator, "discriminator": value}
    if rules.r1:
        penalty, more = jax.value_and_grad(lambda params: r1(functools.partial(judge, params), x))(one.params)
        gradients = jax.tree.map(lambda g, m: g + 0.5 * rules.r1 * m, gradients, more)
        losses["r1"] = penalty
    right = 0.5 * ((real > 0).mean() + (fake < 0).mean())
    return dx_hat, gradients, LogitStats(real.mean(), fake.mean(), right, jnp.ones(())), losses


def adaptive_weight(reconstruction: jax.Array, adversarial: jax.Array, largest: float) -> jax.Array:
    """VQGAN's weight (arXiv 2012.09841): |d rec| / |d adv|, the gradients at the last decoder layer.

    Args:
      reconstruction: gradient of all other terms at the last layer's kernel.
      adversarial: gradient of the adversarial term there.
      largest: the most that it may be.
    """
    ratio = jnp.linalg.norm(reconstruction) / (jnp.linalg.norm(adversarial) + 1e-4)
    return jnp.clip(ratio, 0.0, largest)


def alarm(name: str, accuracy: float) -> str | None:
    """One line about a discriminator whose judgement has become worthless, or None."""
    if accuracy > 0.98:
        return f"the {name} discriminator wins (accuracy above 0.98): lower loss.adversarial.learning_rate"
    if accuracy < 0.52:
        return f"the {name} discriminator tells nothing (accuracy below 0.52): it may have collapsed"
    return None
