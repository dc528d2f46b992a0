"""One update: the gradients of every bucket, summed by weight, then one step of both sides. Pure."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vaejax.losses import latent as latent_terms
from vaejax.losses.adversarial import Adversary, LogitStats, adaptive_weight
from vaejax.losses.objective import Objective, Outputs, Terms
from vaejax.models.autoencoder import Autoencoder
from vaejax.train import optimizer as optim
from vaejax.train.fault import Fault, strike
from vaejax.train.state import TrainState


@flax.struct.dataclass
class Gathered:
    """What the buckets of an update leave for its step.

    Attributes:
      generator: gradients, tree like state.params.
      opponents: gradients of each discriminator's parameters, by name.
      observed: what each discriminator's logits were.
      finite: () whether every loss and gradient so far is.
    """

    generator: dict
    opponents: dict
    observed: dict[str, LogitStats]
    finite: jax.Array


def pixels(frames: jax.Array) -> jax.Array:
    """uint8 (B, T, H, W, C) to float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def nothing_gathered(state: TrainState, adversary: Adversary | None) -> Gathered:
    """Where an update begins."""
    opponents = adversary.zeros(state.opponents) if adversary else ({}, {})
    return Gathered(jax.tree.map(jnp.zeros_like, state.params), *opponents, jnp.array(True))


def generate(model: Autoencoder, objective: Objective, params: dict, x: jax.Array, key: jax.Array) -> Outputs:
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
    gathered: Gathered,
    frames: jax.Array,
    key: jax.Array,
    lpips_params: dict,
    weight: float,
    *,
    model: Autoencoder,
    objective: Objective,
    adversary: Adversary | None = None,
    faults: Sequence[Fault] = (),
) -> tuple[Gathered, Terms]:
    """Adds weight · ∇L of one bucket's batch, and of the discriminators' losses, to what was gathered.

    The generator runs forward once: the reconstruction's cotangents of all terms, the adversarial one among
    them, are added and pulled back together.

    Args:
      state: whose params are differentiated.
      gathered: from the buckets before.
      frames: (B, T, H, W, C) uint8, the whole batch over all devices.
      key: of this run's noise; step and shape are folded in here, so noise never repeats.
      lpips_params: of the perceptual network; {} where it does not count.
      weight: the bucket's.
      model: the autoencoder.
      objective: the loss.
      adversary: None leaves it out.
      faults: of tests, those of this bucket.

    Returns:
      What is gathered now, and the bucket's terms, each ().
    """
    for number in (state.step, *frames.shape[1:4]):
        key = jax.random.fold_in(key, number)
    key, key_seen, key_judged = jax.random.split(key, 3)

    clean = pixels(frames)
    x = strike(faults, "data", state.step, clean, clean)
    out, pull = jax.vjp(lambda params: generate(model, objective, params, x, key), state.params)
    out = out.replace(x_hat=strike(faults, "generator", state.step, clean, out.x_hat))

    def loss(out):
        return objective(x, out, lpips_params, key_seen)

    cotangents, terms = jax.grad(loss, has_aux=True)(out)
    judged, seen, observed = {}, {}, gathered.observed
    if adversary:
        seen_x_hat = strike(faults, "discriminator", state.step, clean, out.x_hat)
        dx_hat, judged, seen, more = adversary.gradients(state.opponents, x, seen_x_hat, key_judged)
        scale = objective.scale(x.shape[1:])
        share = adversary.weight_fraction(state.step) * objective.weights["adversarial"]
        if adversary.adaptive:
            at_last_layer = [
                pull(_only_x_hat(out, each))[0]["autoencoder"]["decoder"]["conv_out"]["kernel"]
                for each in (cotangents.x_hat, scale * dx_hat)
            ]
            more["adaptive_weight"] = adaptive_weight(*at_last_layer, adversary.adaptive)
            share *= more["adaptive_weight"]
        # Nothing times something that is not finite is not nothing: before the start it must not count.
        added = jnp.where(share > 0, share * scale * dx_hat, 0.0)
        cotangents = cotangents.replace(x_hat=cotangents.x_hat + added)
        observed = observed | {n: jax.tree.map(jnp.add, observed[n], one) for n, one in seen.items()}
        terms |= more
    (new,) = pull(cotangents)
    finite = jnp.isfinite(optax.tree.norm((new, judged, seen)))
    for value in terms.values():
        finite &= jnp.isfinite(value)

    def add(old, g):
        return jax.tree.map(lambda old, g: old + weight * g, old, g)

    opponents = gathered.opponents | {name: add(gathered.opponents[name], g) for name, g in judged.items()}
    summed = Gathered(add(gathered.generator, new), opponents, observed, gathered.finite & finite)
    return summed, terms | {"finite": finite}


def apply_gradients(
    state: TrainState,
    gathered: Gathered,
    *,
    optimizer: optax.GradientTransformation,
    clipping: optax.GradientTransformation,
    ema_decay: float,
    adversary: Adversary | None = None,
) -> tuple[TrainState, Terms]:
    """Clips, steps and averages; the discriminators step too. Where anything is not finite, nothing changes.

    The decision falls here, on numbers that all devices share, so all of them skip the same update; only
    the step's number goes on.

    Returns:
      The state; the norms that show a run's health, each (), and 'finite'.
    """
    gradients = gathered.generator
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    # The optimiser clips for itself; XLA merges this second, stateless computation with its own.
    clipped, _ = clipping.update(gradients, clipping.init(state.params), state.params)
    norms = {
        "grad_norm": optax.tree.norm(gradients),
        "clipped_grad_norm": optax.tree.norm(clipped),
        "update_norm": optax.tree.norm(updates),
        "param_norm": optax.tree.norm(params),
        "log_scale": params["likelihood"]["log_scale"],
    }
    average = optim.ema(state.ema, params, ema_decay, state.step)
    opponents = state.opponents
    if adversary:
        opponents = {
            name: adversary.update(one, gathered.opponents[name], gathered.observed[name])
            for name, one in opponents.items()
        }
    finite = gathered.finite
    for norm in (*norms.values(), *(optax.tree.norm(one.params) for one in opponents.values())):
        finite &= jnp.isfinite(norm)
    if adversary:
        norms |= {f"accuracy_{name}": one.accuracy for name, one in opponents.items()}
    new = TrainState(state.step, params, average, optimizer_state, opponents)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return kept.replace(step=state.step + 1), norms | {"finite": finite}


def _only_x_hat(out: Outputs, x_hat: jax.Array) -> Outputs:
    return jax.tree.map(jnp.zeros_like, out).replace(x_hat=x_hat)
