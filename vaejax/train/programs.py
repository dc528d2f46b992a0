"""The uncompiled programs of an update: zero gradients, gradients of each bucket, and the optimizer step."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.stages import Traced

from vaejax.codec.load import TrainedVAE
from vaejax.config import Config
from vaejax.data.bucket import Bucket
from vaejax.losses.adversarial import Adversary
from vaejax.losses.distillation import Reference, matching_levels
from vaejax.losses.objective import Networks, Objective
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.families import architecture_of_run
from vaejax.networks import grid_features, lpips
from vaejax.runtime import flops
from vaejax.runtime import mesh as sharding
from vaejax.train import optimizer as optim
from vaejax.train import state as states
from vaejax.train import step as steps
from vaejax.train.state import TrainState


class Phase(NamedTuple):
    """The loss terms that have started by a step; each combination has its own compiled programs.

    Attributes:
      perceptual: whether the perceptual term has started; True in a run without it.
      adversarial: whether the discriminators train.
    """

    perceptual: bool
    adversarial: bool


@dataclasses.dataclass(frozen=True)
class Programs:
    """The uncompiled programs of one update; the mesh may describe devices that are not attached.

    Each `Phase` has its own programs, so a loss term costs nothing before it starts.

    Attributes:
      state: shape and sharding of every array of the train state.
      mesh: device mesh of the run.
      model, objective, adversary, optimizer, clipping, ema_decay: see train/step.py.
      networks: parameters of the frozen networks, or their shapes, see `Networks` in losses/objective.py.
      perceptual_start: first step with the perceptual term.
      inject: test hook that corrupts values, see `Inject` in train/step.py.
      trained: halves of the autoencoder that train.
      reference: the model that the run started from or learns from; None if no term needs it.
      auxiliary: shapes of the parameters that only loss terms need.
      cached: whether batches come with their latents.
    """

    state: TrainState
    mesh: Mesh
    model: Autoencoder
    objective: Objective
    adversary: Adversary | None
    optimizer: optax.GradientTransformation
    clipping: optax.GradientTransformation
    ema_decay: float
    networks: Networks
    perceptual_start: int = 0
    inject: steps.Inject | None = None
    trained: tuple[str, ...] = states.HALVES
    reference: Reference | None = None
    auxiliary: states.Auxiliary = dataclasses.field(default_factory=dict)
    cached: bool = False

    @classmethod
    def of(
        cls,
        config: Config,
        buckets: Sequence[Bucket],
        mesh: Mesh,
        inject: steps.Inject | None = None,
        known: TrainedVAE | None = None,
    ) -> "Programs":
        """Builds the programs of a configuration.

        Args:
          config: configuration of the run.
          buckets: buckets of the configuration.
          mesh: mesh of the run.
          inject: test hook that corrupts values, see `Inject` in train/step.py.
          known: the model of config.init or config.teacher.

        Raises:
          InputError: if the settings of model, loss and buckets do not fit together, or if the weight file of
            the perceptual network cannot be used.
        """
        model = Autoencoder(architecture_of_run(config, known.architecture if known else None))
        adversary = Adversary.of(config, buckets)
        optimizer = optim.optimizer(config.optim, config.steps)
        trained, objective = config.optim.train, Objective.of(config)
        reference, reference_params, auxiliary = _reference(config, model, known)
        networks = {
            "lpips": lpips.load_for(config.loss, buckets),
            "alignment": grid_features.load_for(config.loss),
            "reference": reference_params,
        }
        networks = {name: params for name, params in networks.items() if params}
        if objective.uses("alignment"):
            width = grid_features.width(config.loss.alignment.network, networks["alignment"])
            auxiliary["alignment"] = {"kernel": (model.architecture.latent_channels, width)}
        if objective.corruption.hides:
            auxiliary["corruption"] = {"token": (model.architecture.latent_channels,)}
        return cls(
            states.shapes(model, optimizer, adversary, mesh, trained, auxiliary),
            mesh,
            model,
            objective,
            adversary,
            optimizer,
            optim.clipping(config.optim),
            config.ema.decay,
            networks,
            config.loss.perceptual.start if "lpips" in networks else 0,
            inject,
            trained,
            reference,
            auxiliary,
            bool(config.data.latents),
        )

    def phase(self, step: int) -> Phase:
        """The loss terms that have started by update `step`, counted from 0."""
        return Phase(
            step >= self.perceptual_start, self.adversary is not None and self.adversary.is_training(step)
        )

    def next_start(self, step: int) -> int | None:
        """The first update after `step` that needs other programs; None if there is none."""
        starts = [self.perceptual_start]
        if self.adversary:
            starts.append(self.adversary.start - self.adversary.warmup)
        return min((start for start in starts if start > step), default=None)

    def zeros(self, phase: Phase) -> Traced:
        """The program `step.zeros`: returns zero gradients for a state."""
        zeros = functools.partial(steps.zeros, adversary=self._adversary(phase))
        places = jax.tree.map(lambda x: x.sharding, self.accumulated(phase))
        return jax.jit(zeros, out_shardings=places).trace(self.state)

    def gradients(self, phase: Phase, bucket: Bucket) -> Traced:
        """The program `step.batch_gradients`: adds the gradients of a batch of this bucket."""
        accumulated = self.accumulated(phase)
        step = functools.partial(
            steps.batch_gradients,
            pieces=bucket.batch // bucket.at_once,
            weight=bucket.weight,
            model=self.model,
            objective=self.objective if phase.perceptual else self.objective.without("perceptual"),
            adversary=self._adversary(phase),
            reference=self.reference,
            inject=functools.partial(self.inject, bucket.name) if self.inject else None,
        )
        frames, whole = self.frames(bucket, bucket.batch), sharding.replicated(self.mesh)
        key, networks = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            (jax.eval_shape(lambda: jax.random.key(0)), self.networks),
        )
        places = jax.tree.map(lambda x: x.sharding, accumulated)
        latents = None
        if self.cached:
            shape = self.model.architecture.latent_shape(bucket.frames, bucket.height, bucket.width)
            latents = jax.ShapeDtypeStruct((bucket.batch, *shape), jnp.float32, sharding=frames.sharding)
        step = jax.jit(step, donate_argnums=1, out_shardings=(places, None))
        with sharding.placing_frames(self.mesh):
            return step.trace(self.state, accumulated, frames, key, networks, latents=latents)

    def frames(self, bucket: Bucket, batch: int) -> jax.ShapeDtypeStruct:
        """Shape and sharding of uint8 samples of this bucket."""
        shape = batch, bucket.frames, bucket.height, bucket.width, self.model.architecture.pixel_channels
        place = sharding.frames_sharding(self.mesh, bucket.at_once)
        return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=place)

    def apply(self, phase: Phase) -> Traced:
        """The program `step.apply_gradients`: updates a state with the gradients of all buckets."""
        apply = functools.partial(
            steps.apply_gradients,
            adversary=self._adversary(phase),
            optimizer=self.optimizer,
            clipping=self.clipping,
            ema_decay=self.ema_decay,
        )
        places = jax.tree.map(lambda x: x.sharding, self.state)
        apply = jax.jit(apply, donate_argnums=0, out_shardings=(places, None))
        return apply.trace(self.state, self.accumulated(phase))

    def model_flops(self, phase: Phase, bucket: Bucket) -> int:
        """FLOPs of the gradients of one batch, not counting recomputation by the model's `remat`."""
        architecture = self.model.architecture.replace(remat=())
        once = dataclasses.replace(self, model=self.model.clone(architecture=architecture))
        return flops.count(once.gradients(phase, bucket).jaxpr)

    def accumulated(self, phase: Phase) -> steps.Accumulated:
        """Shapes and shardings of the accumulated gradients; each is sharded like its parameter."""
        adversary = self._adversary(phase)
        accumulated = jax.eval_shape(functools.partial(steps.zeros, adversary=adversary), self.state)
        states_of = self.state.discriminators if adversary else {}
        like = (self.state.params, {name: one.params for name, one in states_of.items()})
        places = jax.tree.map(lambda x: x.sharding, like)
        whole = jax.tree.map(
            lambda _: sharding.replicated(self.mesh), (accumulated.logits, accumulated.finite)
        )
        return sharding.with_shardings(accumulated, steps.Accumulated(*places, *whole))

    def _adversary(self, phase: Phase) -> Adversary | None:
        return self.adversary if phase.adversarial else None


def _reference(
    config: Config, model: Autoencoder, known: TrainedVAE | None
) -> tuple[Reference | None, dict, dict]:
    """The reference, its parameters and the shapes of projections, as far as the loss needs them."""
    weights, params, pairs, auxiliary = config.loss.weights, {}, (), {}
    if known and weights.anchor:
        params["encoder"] = known.params["encoder"]
    if known and (weights.teacher or weights.features):
        params["decoder"] = known.params["decoder"]
    if known is None or not params:
        return None, {}, {}
    std = np.ones(known.architecture.latent_channels) if known.std is None else known.std
    judge = Autoencoder(known.architecture.replace(remat=(), dtype=model.architecture.dtype))
    if weights.features:
        pairs, shapes = matching_levels(model, judge)
        auxiliary["projections"] = {level: {"kernel": shape} for level, shape in shapes.items()}
    return Reference(judge, pairs), params | {"std": np.asarray(std, np.float32)}, auxiliary
