"""One update as pure functions: the weighted sum of all buckets' gradients, then one optimizer step.

The autoencoder and the discriminators step together.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from vaejax.losses import distillation
from vaejax.losses import latent as latent_terms
from vaejax.losses.adversarial import Adversary, LogitStats, adaptive_weight
from vaejax.losses.alignment import pulled
from vaejax.losses.distillation import Reference
from vaejax.losses.objective import LIKELIHOODS, Networks, Objective, Outputs, Terms
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.ema import ema
from vaejax.models.pixels import from_uint8
from vaejax.models.posterior import LOG_VARIANCE_RANGE, DiagonalGaussian
from vaejax.train.state import TrainState

# A hook by which tests corrupt values: (bucket, place, step, x, y) -> y or a corrupted y. x is the batch.
# `place` says which value y is. 'data': the batch. 'generator': its reconstruction. 'discriminator': the
# reconstruction, corrupted for the discriminators only.
Inject = Callable[[str, str, Array, Array, Array], Array]


@flax.struct.dataclass
class Accumulated:
    """Gradients accumulated over the buckets of one update.

    Attributes:
      generator: weighted sum of the gradients of `TrainState.params`.
      discriminators: weighted sums of the gradients of each discriminator's parameters, by name.
      logits: statistics of each discriminator's logits, by name.
      finite: boolean (), True if every loss and gradient so far is finite.
    """

    generator: dict
    discriminators: dict
    logits: dict[str, LogitStats]
    finite: Bool[Array, ""]


def zeros(state: TrainState, adversary: Adversary | None) -> Accumulated:
    """Returns zero gradients and statistics, to which those of every bucket are added."""
    discriminators = adversary.zeros(state.discriminators) if adversary else ({}, {})
    return Accumulated(jax.tree.map(jnp.zeros_like, state.params), *discriminators, jnp.array(True))


def reconstruct(
    model: Autoencoder,
    objective: Objective,
    params: dict,
    x: Float[Array, "B T H W C"],
    key: PRNGKeyArray,
    frozen: dict | None = None,
    reference: Reference | None = None,
    networks: Networks | None = None,
    latents: Float[Array, "b t h w c"] | None = None,
) -> Outputs:
    """Encodes a batch, samples its posterior and decodes the sample, which may be corrupted.

    Args:
      model: the autoencoder.
      objective: objective, whose settings decide on corruptions and on the terms that need further passes.
      params: parameters, structured as `TrainState.params`.
      x: pixels (B, T, H, W, C) in [-1, 1].
      key: random key of the sample, its corruption and the equivariance term.
      frozen: parameters of the half that does not train, see `TrainState.frozen`.
      reference: the model of the terms 'anchor', 'teacher' and 'features'.
      networks: parameters of the frozen networks, see `Networks`.
      latents: means of the posterior, read from files; None encodes x.

    Returns:
      The outputs from which the objective computes the loss.
    """
    key_z, key_corruption, key_equivariance, key_pairs = jax.random.split(key, 4)
    halves, is_video = params["autoencoder"] | (frozen or {}), x.shape[1] > 1

    def decode(z: Array) -> Any:
        return model.apply({"params": halves}, z, is_video, method="decode")

    if latents is None:
        posterior = cast(DiagonalGaussian, model.apply({"params": halves}, x, method="encode"))
    else:
        posterior = DiagonalGaussian(latents, jnp.full_like(latents, LOG_VARIANCE_RANGE[0]))
    z = posterior.sample(key_z)
    settings, terms, features = objective.latent, {}, {}
    token = params["corruption"]["token"] if objective.corruption.hides else None
    log_scale, nll = params["likelihood"]["log_scale"], LIKELIHOODS[objective.likelihood]
    if objective.uses("alignment") and networks:
        targets = objective.alignment.features(networks["alignment"], x, z.shape[1:4])
        distance = functools.partial(objective.alignment, key_pairs, features=targets)
        kernel = params["alignment"]["kernel"]
        # The term itself trains the projection, and `pulled` the encoder.
        terms["alignment"] = distance(jax.lax.stop_gradient(z), kernel)
        z = pulled(z, jax.grad(distance)(z, kernel), jnp.float32(objective.weights["alignment"]))
    seen = objective.corruption(key_corruption, z, token)
    if objective.uses("features"):
        x_hat, features = distillation.decode_with_features(model, halves, seen)
    else:
        x_hat = decode(seen)
    if objective.uses("equivariance"):
        terms["equivariance"] = latent_terms.equivariance(decode, z, x, key_equivariance, settings)
    if reference and networks:
        known = networks["reference"]
        if objective.uses("anchor"):
            terms["anchor"] = distillation.anchor(posterior.mean, reference.mean(known, x), known["std"])
        if objective.uses("teacher") or objective.uses("features"):
            target, targets = jax.lax.stop_gradient(reference.decode(known, z))
            if objective.uses("teacher"):
                terms["teacher"] = distillation.agreement(x_hat, target, log_scale, nll)
            if objective.uses("features"):
                projections, pairs = params["projections"], reference.pairs
                terms["features"] = distillation.feature_distance(features, targets, projections, pairs)
    return Outputs(x_hat, posterior, z, log_scale, terms)


def batch_gradients(
    state: TrainState,
    accumulated: Accumulated,
    frames: UInt8[Array, "B T H W C"],
    key: PRNGKeyArray,
    networks: Networks,
    weight: float,
    latents: Float[Array, "b t h w c"] | None = None,
    *,
    pieces: int = 1,
    **fixed: Any,
) -> tuple[Accumulated, Terms]:
    """Computes `bucket_gradients` piece by piece, if the activations of the whole batch do not fit in memory.

    Losses are means over samples, so the mean over pieces of equal size is the loss of the batch. Every piece
    has its own noise. The arguments are those of `bucket_gradients`, and `pieces`, a divisor of B.
    """

    def gradients(accumulated, frames, latents, key, weight):
        return bucket_gradients(state, accumulated, frames, key, networks, weight, latents, **fixed)

    def split(x: Array) -> Array:  # strided, so that every device has its share of each piece
        return x.reshape(len(x) // pieces, pieces, *x.shape[1:]).swapaxes(0, 1)

    def add(accumulated: Accumulated, piece: tuple) -> tuple[Accumulated, Terms]:
        number, frames, latents = piece
        return gradients(accumulated, frames, latents, jax.random.fold_in(key, number), weight / pieces)

    if pieces == 1:
        return gradients(accumulated, frames, latents, key, weight)
    each = jnp.arange(pieces), split(frames), None if latents is None else split(latents)
    summed, terms = jax.lax.scan(add, accumulated, each)
    # The statistics of a batch count once, however many pieces it has.
    logits = jax.tree.map(lambda old, new: old + (new - old) / pieces, accumulated.logits, summed.logits)
    summed = dataclasses.replace(summed, logits=logits)
    return summed, {k: x.all() if k == "finite" else x.mean(0) for k, x in terms.items()}


def bucket_gradients(
    state: TrainState,
    accumulated: Accumulated,
    frames: UInt8[Array, "B T H W C"],
    key: PRNGKeyArray,
    networks: Networks,
    weight: float,
    latents: Float[Array, "b t h w c"] | None = None,
    *,
    model: Autoencoder,
    objective: Objective,
    adversary: Adversary | None = None,
    reference: Reference | None = None,
    inject: Callable[[str, Array, Array, Array], Array] | None = None,
) -> tuple[Accumulated, Terms]:
    """Adds the gradients of one bucket's batch, times the bucket's weight, to those of earlier buckets.

    All terms share one forward pass of the autoencoder, in which equivariance decodes a second latent. Each
    term, the adversarial one included, has a gradient with respect to the outputs of this pass. The sum of
    these gradients is propagated back through the autoencoder.

    Args:
      state: state before the update.
      accumulated: gradients of the update's earlier buckets.
      frames: uint8 pixels (B, T, H, W, C) of the batch over all devices.
      key: random key of the run; step and shape are folded in here, so each step and shape has its own noise.
      networks: parameters of the frozen networks, see `Networks`.
      weight: weight of the bucket.
      latents: latents of the batch, read from files; None encodes the batch.
      model: the autoencoder.
      objective: loss without its adversarial term.
      adversary: discriminators; None omits the adversarial term.
      reference: the model that the run started from or learns from; None if no term needs it.
      inject: an `Inject` whose first argument, the bucket's name, is already bound; or None.

    Returns:
      The accumulated gradients, and the bucket's scalar metrics.
    """
    for number in (state.step, *frames.shape[1:4]):
        key = jax.random.fold_in(key, number)
    key, key_crop, key_frames = jax.random.split(key, 3)
    inject = inject or _no_fault

    clean = from_uint8(frames)
    x = inject("data", state.step, clean, clean)

    def forward(params):
        constants = state.frozen, reference, networks, latents
        return reconstruct(model, objective, params, x, key, *constants)

    out, pull = jax.vjp(forward, state.params)
    out = dataclasses.replace(out, x_hat=inject("generator", state.step, clean, out.x_hat))

    def loss(out):
        return objective(x, out, networks, key_crop)

    cotangents, terms = jax.grad(loss, has_aux=True)(out)
    discriminator_gradients, seen, logits = {}, {}, accumulated.logits
    if adversary:
        seen_x_hat = inject("discriminator", state.step, clean, out.x_hat)
        dx_hat, discriminator_gradients, seen, more = adversary.gradients(
            state.discriminators, x, seen_x_hat, key_frames
        )
        scale = objective.scale(x.shape[1:])
        share = adversary.weight_fraction(state.step) * objective.weights["adversarial"]
        if adversary.adaptive:
            other, adversarial = (
                pull(_only_x_hat(out, each))[0]["autoencoder"]["decoder"]["conv_out"]["kernel"]
                for each in (cotangents.x_hat, scale * dx_hat)
            )
            more["adaptive_weight"] = adaptive_weight(other, adversarial, adversary.adaptive)
            share *= more["adaptive_weight"]
        # 0 * inf is NaN, so the term is masked while its share is 0.
        added = jnp.where(share > 0, share * scale * dx_hat, 0.0)
        cotangents = dataclasses.replace(cotangents, x_hat=cotangents.x_hat + added)
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
    """Clips the gradients, steps the optimizers and updates the EMA.

    If any loss, gradient or norm is not finite, the update is skipped: only the step number advances. The
    decision depends on values that are identical on all devices, so all of them skip the same update.

    Args:
      state: state before the update.
      accumulated: gradients of all buckets.
      optimizer: optimizer of state.params, clipping included.
      clipping: the clipping inside `optimizer`, applied again to measure the norm of the clipped gradients.
      ema_decay: upper bound of the EMA's decay.
      adversary: discriminators; None if there are none or if they do not train yet.

    Returns:
      The next state, and its scalar metrics: norms, the log-scale, accuracies of the discriminators, and
      'finite', False if the update was skipped.
    """
    gradients = accumulated.generator
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    params = cast(dict, optax.apply_updates(state.params, updates))
    # The optimizer clips too; XLA merges the two computations, because clipping has no state.
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
    new = TrainState(state.step, params, average, optimizer_state, discriminators, state.frozen)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return dataclasses.replace(kept, step=state.step + 1), norms | {"finite": finite}


def _only_x_hat(out: Outputs, x_hat: Float[Array, "B T H W C"]) -> Outputs:
    """Returns cotangents of `out` that are zero except for the reconstruction's."""
    return dataclasses.replace(jax.tree.map(jnp.zeros_like, out), x_hat=x_hat)


def _no_fault(place: str, step: Array, x: Array, y: Array) -> Array:
    return y
