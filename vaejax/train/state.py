"""The train state, its sharded initialization and its form in a checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray

from vaejax.losses.adversarial import Adversary, DiscriminatorState
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import mesh as sharding

HALVES = ("encoder", "decoder")
# Shapes of the parameters that only loss terms need, as a tree of tuples: {'projections': {level: {'kernel':
# (C, C')}}} if decoder features are distilled, {'alignment': {'kernel': (c, d)}} if latents are aligned, and
# {'corruption': {'token': (c,)}} if latents are hidden.
Auxiliary = Mapping[str, Any]


@flax.struct.dataclass
class TrainState:
    """The arrays of a run.

    Attributes:
      step: number () of updates, int32, including skipped ones.
      params: float32 parameters that train: {'autoencoder': {'encoder': ..., 'decoder': ...}, 'likelihood':
        {'log_scale': ()}}. A half that is frozen is missing. Some loss terms add parameters of their own, see
        `Auxiliary`.
      ema: exponential moving average of params, with the same structure.
      optimizer: optax state of the optimizer of params.
      discriminators: state of each discriminator by name; {} without an adversarial term.
      frozen: parameters of the half that does not train, {'encoder': ...} or {'decoder': ...}; {} if both do.
    """

    step: Int[Array, ""]
    params: dict
    ema: dict
    optimizer: optax.OptState
    discriminators: dict[str, DiscriminatorState]
    frozen: dict = dataclasses.field(default_factory=dict)

    def whole(self, params: dict) -> dict:
        """Returns `params` or `ema` with both halves of the autoencoder."""
        return params | {"autoencoder": params["autoencoder"] | self.frozen}


def create(
    model: Autoencoder,
    optimizer: optax.GradientTransformation,
    adversary: Adversary | None,
    mesh: Mesh,
    seed: int,
    trained: Sequence[str] = HALVES,
) -> TrainState:
    """Initializes a state from a seed; every shard is created on its own device."""
    return initializer(model, optimizer, adversary, mesh, seed, trained)()


def initializer(
    model: Autoencoder,
    optimizer: optax.GradientTransformation,
    adversary: Adversary | None,
    mesh: Mesh,
    seed: int,
    trained: Sequence[str] = HALVES,
    auxiliary: Auxiliary | None = None,
) -> Callable[[], TrainState]:
    """The jitted function behind `create`, for callers that initialize more than once.

    Args:
      model: the autoencoder.
      optimizer: the optimizer of its parameters.
      adversary: the discriminators; None without them.
      mesh: mesh of the run.
      seed: seed of the parameters.
      trained: halves of the autoencoder that train.
      auxiliary: shapes of the parameters that only loss terms need.
    """
    init = _init(model, optimizer, adversary, seed, trained, auxiliary)
    shardings = sharding.state_shardings(mesh, jax.eval_shape(init))
    return jax.jit(init, out_shardings=shardings)


def shapes(
    model: Autoencoder,
    optimizer: optax.GradientTransformation,
    adversary: Adversary | None,
    mesh: Mesh,
    trained: Sequence[str] = HALVES,
    auxiliary: Auxiliary | None = None,
) -> TrainState:
    """The shape and sharding of every array of a state; the mesh may describe devices that are absent."""
    state = jax.eval_shape(_init(model, optimizer, adversary, 0, trained, auxiliary))
    return sharding.with_shardings(state, sharding.state_shardings(mesh, state))


def to_items(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint.

    Each discriminator is a separate item, so a resumed run may add or drop one. So is the frozen half.
    """
    main = {"step": state.step, "params": state.params, "ema": state.ema, "optimizer": state.optimizer}
    main["opponents"] = {}  # unused, but part of the format since version 0.1
    frozen = {"frozen": state.frozen} if state.frozen else {}
    return {"state": main} | frozen | {_item(name): one for name, one in state.discriminators.items()}


def from_items(state: TrainState, items: Mapping[str, Any]) -> TrainState:
    """Returns `state` with the arrays of a checkpoint; a discriminator that `items` lacks stays as it is."""
    found = {name: items[_item(name)] for name in state.discriminators if _item(name) in items}
    main = {name: value for name, value in items["state"].items() if name != "opponents"}
    frozen = items.get("frozen", state.frozen)
    return dataclasses.replace(state, **main, frozen=frozen, discriminators=state.discriminators | found)


def _item(discriminator: str) -> str:
    return f"discriminator_{discriminator}"


def _init(model, optimizer, adversary, seed: int, trained, auxiliary) -> Callable[[], TrainState]:
    def init() -> TrainState:
        key = jax.random.key(seed)
        clip = jnp.zeros(model.architecture.example_shape)
        halves = model.init(key, clip, key)["params"]
        frozen = {half: halves.pop(half) for half in HALVES if half not in trained}
        params = {"autoencoder": halves, "likelihood": {"log_scale": jnp.zeros(())}}
        params |= _drawn(key, auxiliary or {})
        # A copy, because donating one buffer twice is an error.
        average = jax.tree.map(jnp.copy, params)
        discriminators = adversary.init(jax.random.fold_in(key, 1)) if adversary else {}
        step, optimizer_state = jnp.zeros((), jnp.int32), optimizer.init(params)
        return TrainState(step, params, average, optimizer_state, discriminators, frozen)

    return init


def _drawn(key: PRNGKeyArray, shapes: Auxiliary) -> dict:
    """Draws kernels, and sets tokens to 0."""
    leaves, tree = jax.tree.flatten(dict(shapes), is_leaf=lambda shape: isinstance(shape, tuple))
    draw = nn.initializers.lecun_normal()
    arrays = [
        draw(jax.random.fold_in(key, i), shape) if len(shape) > 1 else jnp.zeros(shape)
        for i, shape in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, arrays)
