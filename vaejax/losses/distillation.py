"""Loss terms that compare a model with the one that it started from, or with its teacher."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.errors import InputError
from vaejax.models.autoencoder import Autoencoder

Features = Mapping[str, jax.Array]  # activations of a decoder's levels, (B, T, H, W, C), by 'level_N'


@dataclasses.dataclass(frozen=True)
class Reference:
    """The model of config.init or config.teacher, as the loss uses it; it does not train.

    Its parameters are a dictionary with the halves that the loss needs, and 'std', the standard deviation
    (c,) of each latent channel.

    Attributes:
      model: the autoencoder.
      pairs: pairs of decoder levels that are compared: (level of the student, level of the teacher).
    """

    model: Autoencoder
    pairs: tuple[tuple[str, str], ...] = ()

    def mean(self, params: dict, x: Float[Array, "B T H W C"]) -> Float[Array, "b t h w c"]:
        """The mean of the posterior of a clip."""
        posterior: Any = self.model.apply({"params": params}, x, x.shape[1] > 1, method="encode")
        return posterior.mean

    def decode(
        self, params: dict, z: Float[Array, "b t h w c"]
    ) -> tuple[Float[Array, "B T H W C"], dict[str, jax.Array]]:
        """Decodes latents; returns the pixels and the activations of all levels."""
        return decode_with_features(self.model, params, z)


def decode_with_features(
    model: Autoencoder, params: dict, z: Float[Array, "b t h w c"]
) -> tuple[Float[Array, "B T H W C"], dict[str, jax.Array]]:
    """Decodes latents; returns the pixels and the activations of all levels of the decoder."""
    variables = {"params": params}
    x_hat, state = model.apply(variables, z, z.shape[1] > 1, method="decode", mutable=["features"])
    return x_hat, dict(state)["features"]["decoder"]


def anchor(
    mean: Float[Array, "b t h w c"], reference: Float[Array, "b t h w c"], std: Float[Array, " c"]
) -> Float[Array, ""]:
    """Computes the mean squared distance () of two latents, in units of each channel's standard deviation."""
    return jnp.square((mean - reference) / std).mean()


def agreement(
    x_hat: Float[Array, "B T H W C"],
    target: Float[Array, "B T H W C"],
    log_scale: Float[Array, ""],
    nll: Callable[..., jax.Array],
) -> Float[Array, ""]:
    """Computes the excess negative log-likelihood of the teacher's pixels under the student's reconstruction.

    So an error against the teacher's pixels weighs as much as one against the sample's.

    Args:
      x_hat: reconstruction of the student.
      target: reconstruction of the teacher.
      log_scale: learned log-scale of the likelihood; it receives no gradient.
      nll: negative log-likelihood of the objective, one of LIKELIHOODS.

    Returns:
      Mean () in nats per pixel value; 0 for equal reconstructions.
    """
    scale = jax.lax.stop_gradient(log_scale)
    return (nll(target, x_hat, scale) - nll(target, target, scale)).mean()


def feature_distance(
    features: Features, targets: Features, projections: dict, pairs: tuple[tuple[str, str], ...]
) -> Float[Array, ""]:
    """Computes how far projected features are from those of the teacher.

    Args:
      features: activations of the student's decoder.
      targets: activations of the teacher's decoder.
      projections: {level of the student: {'kernel': (C, C')}}, the learned projections.
      pairs: pairs of levels that are compared.

    Returns:
      The mean () over pairs of |projected - target|² / |target|², with norms over the batch.
    """
    distances = []
    for level, other in pairs:
        target = targets[other].astype(jnp.float32)
        projected = features[level].astype(jnp.float32) @ projections[level]["kernel"]
        distances.append(jnp.square(projected - target).mean() / (jnp.square(target).mean() + 1e-6))
    return jnp.stack(distances).mean()


def matching_levels(student: Autoencoder, teacher: Autoencoder) -> tuple[tuple[tuple[str, str], ...], dict]:
    """Finds the decoder levels of student and teacher that have the same resolution in space and time.

    Returns:
      The pairs of levels, and the shape (C, C') of each projection by the student's level.

    Raises:
      InputError: if no levels match.
    """
    features, targets = _feature_shapes(student), _feature_shapes(teacher)
    pairs, shapes = [], {}
    for level, shape in sorted(features.items()):
        matching = [name for name, other in sorted(targets.items()) if other[:4] == shape[:4]]
        if matching:
            pairs.append((level, matching[0]))
            shapes[level] = (shape[4], targets[matching[0]][4])
    if not pairs:
        raise InputError(
            "loss.weights.features: no level of the decoder has the resolution of a level of the teacher's;"
            " accepted: 0"
        )
    return tuple(pairs), shapes


def _feature_shapes(model: Autoencoder) -> dict[str, tuple[int, ...]]:
    architecture = model.architecture
    key = jax.eval_shape(lambda: jax.random.key(0))
    clip = jax.ShapeDtypeStruct(architecture.example_shape, jnp.float32)
    params = jax.eval_shape(model.init, key, clip, key)["params"]
    b, t, h, w, _ = architecture.example_shape
    z = jax.ShapeDtypeStruct((b, *architecture.latent_shape(t, h, w)), jnp.float32)
    _, features = jax.eval_shape(lambda params, z: decode_with_features(model, params, z), params, z)
    return {level: x.shape for level, x in features.items()}
