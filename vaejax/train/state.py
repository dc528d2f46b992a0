"""The train state, its sharded initialization and its form in a checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from vaejax.losses.adversarial import Adversary, DiscriminatorState
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import mesh as sharding


@flax.struct.dataclass
class TrainState:
    """The arrays of a run.

    Attributes:
      step: number () of updates, int32, including skipped ones.
      params: float32 parameters {'autoencoder': ..., 'likelihood': {'log_scale': ()}}.
      ema: exponential moving average of params, with the same structure.
      optimizer: optax state of the optimizer of params.
      discriminators: state of each discriminator by name; {} without an adversarial term.
    """

    step: Int[Array, ""]
    params: dict
    ema: dict
    optimizer: optax.OptState
    discriminators: dict[str, DiscriminatorState]


def create(
    model: Autoencoder,
    optimizer: optax.GradientTransformation,
    adversary: Adversary | None,
    mesh: Mesh,
    seed: int,
) -> TrainState:
    """Initializes a state from a seed; every shard is created on its own device."""
    return initializer(model, optimizer, adversary, mesh, seed)()


def initializer(
    model: Autoencoder,
    optimizer: optax.GradientTransformation,
    adversary: Adversary | None,
    mesh: Mesh,
    seed: int,
) -> Callable[[], TrainState]:
    """The jitted function behind `create`, for callers that initialize more than once."""
    init = _init(model, optimizer, adversary, seed)
    shardings = sharding.state_shardings(mesh, jax.eval_shape(init))
    return jax.jit(init, out_shardings=shardings)


def shapes(
    model: Autoencoder, optimizer: optax.GradientTransformation, adversary: Adversary | None, mesh: Mesh
) -> TrainState:
    """The shape and sharding of every array of a state; the mesh may describe devices that are absent."""
    state = jax.eval_shape(_init(model, optimizer, adversary, 0))
    return sharding.with_shardings(state, sharding.state_shardings(mesh, state))


def to_items(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint.

    Each discriminator is a separate item, so a resumed run may add or drop one.
    """
    main = {"step": state.step, "params": state.params, "ema": state.ema, "optimizer": state.optimizer}
    main["opponents"] = {}  # unused, but part of the format since version 0.1
    return {"state": main} | {_item(name): one for name, one in state.discriminators.items()}


def from_items(state: TrainState, items: Mapping[str, Any]) -> TrainState:
    """Returns `state` with the arrays of a checkpoint; a discriminator that `items` lacks stays as it is."""
    found = {name: items[_item(name)] for name in state.discriminators if _item(name) in items}
    main = {name: value for name, value in items["state"].items() if name != "opponents"}
    return dataclasses.replace(state, **main, discriminators=state.discriminators | found)


def _item(discriminator: str) -> str:
    return f"discriminator_{discriminator}"


def _init(model, optimizer, adversary, seed: int) -> Callable[[], TrainState]:
    def init() -> TrainState:
        key = jax.random.key(seed)
        clip = jnp.zeros(model.architecture.example_shape)
        params = {
            "autoencoder": model.init(key, clip, key)["params"],
            "likelihood": {"log_scale": jnp.zeros(())},
        }
        # A copy, because donating one buffer twice is an error.
        average = jax.tree.map(jnp.copy, params)
        discriminators = adversary.init(jax.random.fold_in(key, 1)) if adversary else {}
        return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params), discriminators)

    return init
