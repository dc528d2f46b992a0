"""One update: the gradients of every bucket, summed by weight, then one step of both sides. Pure."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vaejax.losses import latent as latent_terms
from vaejax.losses.adversarial import Adversary, LogitStats, adaptive_weight
from vaejax.losses.objective import Objective, Outputs, Terms
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.ema import ema
from vaejax.models.pixels import from_uint8
from vaejax.train.state import TrainState

# (bucket, place, step, batch x, y) to y or a broken y; place is 'data', 'generator' or 'discriminator'.
Inject = Callable[[str, str, jax.Array, jax.Array, jax.Array], jax.Array]


@flax.struct.dataclass
class Accumulated:
    """The gradients that the buckets of an update add up to.

    Attributes:
      generator: gradients, tree like state.params.
      discriminators: gradients of each discriminator's parameters, by name.
      logits: statistics of each discriminator's logits, by name.
      finite: () whether every loss and gradient so far is finite.
    """

    generator: dict
    discriminators: dict
    logits: dict[str, LogitStats]
    finite: jax.Array


def zeros(state: TrainState, adversary: Adversary | None) -> Accumulated:
    """An empty accumulator."""
    discriminators = adversary.zeros(state.discriminators) if adversary else ({}, {})
    return Accumulated(jax.tree.map(jnp.zeros_like, state.params), *discriminators, jnp.array(True))


def reconstruct(
    model: Autoencoder, objective: Objective, params: dict, x: jax.Array, key: jax.Array
) -> Outputs:
    """Encodes, samples and decodes a batch (B, T, H, W, C) in [-1, 1]."""
    key_z, key_mask, key_equivariance = jax.random.split(key, 3)
    variables, is_video = {"params": params["autoencoder"]}, x.shape[1] > 1

    def decode(z):
        return model.apply(variables, z, is_video, method="decode")

    posterior = model.apply(variables, x, method="encode")
    z = posterior.sample(key_z)
    settings, term = objective.latent, jnp.zeros(())
    kept = latent_terms.masked(key_mask, z, settings.mask) if settings.mask else z
    if objective.uses("equivariance"):
        term = latent_terms.equivariance(decode, z, x, key_equivariance, settings)
    return Outputs(decode(kept), posterior, z, params["likelihood"]["log_scale"], term)


def bucket_gradients(
    state: TrainState,
    accumulated: Accumulated,
    frames: jax.Array,
    key: jax.Array,
    lpips_params: dict,
    weight: float,
    *,
    model: Autoencoder,
    objective: Objective,
    adversary: Adversary | None = None,
    inject: Callable[[str, jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
) -> tuple[Accumulated, Terms]:
    """Adds weight · ∇L of one bucket's batch, and the gradients of the discriminators' losses.

    The generator runs forward once. The cotangents of its reconstruction from all terms, the adversarial one
    included, are added and pulled back together.

    Args:
      state: its params are differentiated.
      accumulated: gradients of the buckets so far.
      frames: (B, T, H, W, C) uint8, the whole batch over all devices.
      key: noise key of the run; step and shape are folded in here, so noise never repeats.
      lpips_params: of the perceptual network; {} if the term is off.
      weight: of the bucket.
      model: the autoencoder.
      objective: the loss.
      adversary: None omits the adversarial term.
      inject: faults of this bucket; see `Inject`.

    Returns:
      The accumulated gradients, and the bucket's metrics, each ().
    """
    for number in (state.step, *frames.shape[1:4]):
        key = jax.random.fold_in(key, number)
    key, key_crop, key_frames = jax.random.split(key, 3)
    inject = inject or _no_fault

    clean = from_uint8(frames)
    x = inject("data", state.step, clean, clean)
    out, pull = jax.vjp(lambda params: reconstruct(model, objective, params, x, key), state.params)
    out = out.replace(x_hat=inject("generator", state.step, clean, out.x_hat))

    def loss(out):
        return objective(x, out, lpips_params, key_crop)

    cotangents, terms = jax.grad(loss, has_aux=True)(out)
    discriminator_gradients, seen, logits = {}, {}, accumulated.logits
    if adversary:
        seen_x_hat = inject("discriminator", state.step, clean, out.x_hat)
        dx_hat, discriminator_gradients, seen, more = adversary.gradients(
            state.discriminators, x, seen_x_hat, key_frames
        )
        scale = objective.scale(x.shape[1:])
        share = adversary.share(state.step) * objective.weights["adversarial"]
        if adversary.adaptive:
            at_last_layer = [
                pull(_only_x_hat(out, each))[0]["autoencoder"]["decoder"]["conv_out"]["kernel"]
                for each in (cotangents.x_hat, scale * dx_hat)
            ]
            more["adaptive_weight"] = adaptive_weight(*at_last_layer, adversary.adaptive)
            share *= more["adaptive_weight"]
        # 0 * inf is NaN, so mask the term while its share is 0.
        added = jnp.where(share > 0, share * scale * dx_hat, 0.0)
        cotangents = cotangents.replace(x_hat=cotangents.x_hat + added)
        logits = logits | {n: jax.tree.map(jnp.add, logits[n], one) for n, one in seen.items()}
        terms |= more
    (new,) = pull(cotangents)
    finite = jnp.isfinite(optax.tree.norm((new, discriminator_gradients, seen)))
    for value in terms.values():
        finite &= jnp.isfinite(value)

    def add(old, g):
        return jax.tree.map(lambda old, g: old + weight * g, old, g)

    discriminators = accumulated.discriminators | {
        name: add(accumulated.discriminators[name], g) for name, g in discriminator_gradients.items()
    }
    summed = Accumulated(add(accumulated.generator, new), discriminators, logits, accumulated.finite & finite)
    return summed, terms | {"finite": finite}


def apply_gradients(
    state: TrainState,
    accumulated: Accumulated,
    *,
    optimizer: optax.GradientTransformation,
    clipping: optax.GradientTransformation,
    ema_decay: float,
    adversary: Adversary | None = None,
) -> tuple[TrainState, Terms]:
    """Clips, steps and averages; the discriminators step too. If anything is not finite, nothing changes.

    The decision depends on numbers that all devices share, so all of them skip the same update; only the step
    number advances.

    Returns:
      The state; norms that show a run's health, each (), and 'finite'.
    """
    gradients = accumulated.generator
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    # The optimizer clips too; XLA merges this second, stateless computation with its own.
    clipped, _ = clipping.update(gradients, clipping.init(state.params), state.params)
    norms = {
        "grad_norm": optax.tree.norm(gradients),
        "clipped_grad_norm": optax.tree.norm(clipped),
        "update_norm": optax.tree.norm(updates),
        "param_norm": optax.tree.norm(params),
        "log_scale": params["likelihood"]["log_scale"],
    }
    average = ema(state.ema, params, ema_decay, state.step)
    discriminators = state.discriminators
    if adversary:
        discriminators = {
            name: adversary.update(one, accumulated.discriminators[name], accumulated.logits[name])
            for name, one in discriminators.items()
        }
    finite = accumulated.finite
    for norm in (*norms.values(), *(optax.tree.norm(one.params) for one in discriminators.values())):
        finite &= jnp.isfinite(norm)
    if adversary:
        norms |= {f"accuracy_{name}": one.accuracy for name, one in discriminators.items()}
    new = TrainState(state.step, params, average, optimizer_state, discriminators)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return kept.replace(step=state.step + 1), norms | {"finite": finite}


def _only_x_hat(out: Outputs, x_hat: jax.Array) -> Outputs:
    return jax.tree.map(jnp.zeros_like, out).replace(x_hat=x_hat)


def _no_fault(place: str, step: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return y
