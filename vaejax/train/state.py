"""What an update changes, and its birth on the mesh."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vaejax.losses.adversarial import Adversary, DiscriminatorState
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import mesh as sharding


@flax.struct.dataclass
class TrainState:
    """The numbers of a run.

    Attributes:
      step: () int32, updates done, those that were skipped among them.
      params: {'autoencoder': ..., 'likelihood': {'log_scale': ()}}, float32.
      ema: their moving average, same tree.
      optimizer: optax state.
      opponents: the discriminators by name; {} without an adversarial term.
    """

    step: jax.Array
    params: dict
    ema: dict
    optimizer: optax.OptState
    opponents: dict[str, DiscriminatorState]


def create(
    model: Autoencoder,
    optimizer: optax.GradientTransformation,
    adversary: Adversary | None,
    mesh: Mesh,
    seed: int,
) -> tuple[TrainState, TrainState]:
    """Initialises a state every shard of which is born on its own device.

    Returns:
      The state, and a tree of the same structure holding its shardings.
    """
    init = _init(model, optimizer, adversary, seed)
    shardings = sharding.state_shardings(mesh, jax.eval_shape(init))
    return jax.jit(init, out_shardings=shardings)(), shardings


def shapes(
    model: Autoencoder, optimizer: optax.GradientTransformation, adversary: Adversary | None, mesh: Mesh
) -> TrainState:
    """The shape and the sharding of every array of a state, for a mesh that need not be there."""
    state = jax.eval_shape(_init(model, optimizer, adversary, 0))
    return sharding.placed(state, sharding.state_shardings(mesh, state))


def _init(model, optimizer, adversary, seed: int) -> Callable[[], TrainState]:
    def init() -> TrainState:
        key = jax.random.key(seed)
        s = model.architecture.spatial_factor
        clip = jnp.zeros((1, 1 + model.architecture.temporal_factor, 4 * s, 4 * s, 3))
        params = {
            "autoencoder": model.init(key, clip, key)["params"],
            "likelihood": {"log_scale": jnp.zeros(())},
        }
        # A copy, because donating one buffer twice is an error.
        average = jax.tree.map(jnp.copy, params)
        opponents = adversary.init(jax.random.fold_in(key, 1)) if adversary else {}
        return TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params), opponents)

    return init
