"""The optimizer: adaptive gradient clipping, AdamW and the learning-rate schedule."""

import jax
import optax

from vaejax.config.schema import OptimConfig

# Factor on the learning rate of the likelihood's log-scale. The log-scale must fall from 0 to about -3, but
# Adam moves a parameter by at most about one learning rate per update. The log-scale should settle early,
# because the weight of the NLL relative to the KL changes until then.
LOG_SCALE_RATE = 10.0


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the schedule: linear warm-up, then a constant rate or cosine decay, see `config.schedule`.

    The cosine ends at config.final_fraction of the peak after `steps` updates.

    Args:
      config: section `optim` of the configuration.
      steps: length of the run in updates.
    """
    peak = config.learning_rate
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(1, steps - config.warmup), config.final_fraction)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, config.warmup), after], [config.warmup])


def clipping(config: OptimConfig) -> optax.GradientTransformation:
    """Returns adaptive gradient clipping per output unit (NFNets, arXiv 2102.06171, equation 3).

    The gradient g of a unit with weights w is scaled by min(1, λ·max(|w|, 1e-3) / |g|), with norms over the
    fan-in and λ = config.agc; λ = 0 turns clipping off. The decoder's last convolution and the likelihood's
    log-scale are exempt. So are the scales and gains of modulated kernels, unless config.agc_scales is set.
    With config.clip_norm, the norm of all gradients is clipped instead.
    """
    if config.clip_norm:
        return optax.masked(
            optax.clip_by_global_norm(config.clip_norm), lambda params: jax.tree.map(lambda _: True, params)
        )

    def mask(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: _is_clipped(_names(path), config), params)

    return optax.masked(optax.adaptive_grad_clip(config.agc), mask)


def optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns the chain of clipping, Adam, weight decay of kernels and learning rate.

    Adam changes every weight by about the learning rate, so the output of a kernel with n inputs changes by
    up to n times as much. With config.fan_in, kernels with more inputs learn more slowly in proportion (muP
    for Adam, arXiv 2203.03466, table 8).

    The structure of its state does not depend on the settings, so a run can resume with other settings.

    Args:
      config: section `optim` of the configuration.
      steps: length of the run in updates.
    """

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[-1] == "kernel", params)

    def likelihood(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[0] == "likelihood", params)

    return optax.chain(
        clipping(config),
        _scaled_by_fan_in(optax.scale_by_adam(config.b1, config.b2), config.fan_in),
        optax.add_decayed_weights(config.weight_decay, kernels),
        optax.masked(optax.scale(LOG_SCALE_RATE), likelihood),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )


def _scaled_by_fan_in(adam: optax.GradientTransformation, fan_in: int) -> optax.GradientTransformation:
    """Multiplies the updates of kernels with n > fan_in inputs by fan_in / n; 0 changes nothing."""

    def scaled(path, update: jax.Array) -> jax.Array:
        inputs = update.size // update.shape[-1] if _names(path)[-1] == "kernel" else 0
        return update * (fan_in / inputs) if 0 < fan_in < inputs else update

    def update(updates, state, params=None):
        updates, state = adam.update(updates, state, params)
        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(adam.init, update)


def _names(path) -> tuple[str, ...]:
    return tuple(key.key for key in path)


def _is_clipped(names: tuple[str, ...], config: OptimConfig) -> bool:
    if not config.agc or names[0] == "likelihood" or names[:3] == ("autoencoder", "decoder", "conv_out"):
        return False
    return names[-1] not in ("scale", "gain") or config.agc_scales
