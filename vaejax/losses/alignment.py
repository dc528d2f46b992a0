"""The alignment of latents with features of a pretrained image network: VA-VAE (arXiv 2501.01423)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vaejax.networks import grid_features

TOKENS = (
    1024  # latent pixels of a frame that are compared with each other; their number of pairs is its square
)


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Settings of the term.

    Attributes:
      network: network of the features, one of grid_features.NETWORKS.
      point_margin: m1 of the paper, see `distance`.
      pair_margin: m2 of the paper.
    """

    network: str
    point_margin: float
    pair_margin: float

    @classmethod
    def of(cls, settings: Any) -> "Alignment":
        """Builds the settings from the section loss.alignment of a configuration."""
        return cls(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)})

    def features(
        self, params: dict, x: Float[Array, "B T H W C"], latent_shape: tuple[int, ...]
    ) -> Float[Array, "b t h w d"]:
        """Computes one feature per latent pixel; it receives no gradient.

        The features of a latent frame are those of its last frame, resized so that every latent pixel has its
        own token. Channels beyond RGB are ignored.

        Args:
          params: parameters of the network.
          x: pixels (B, T, H, W, C) in [-1, 1].
          latent_shape: shape (t, h, w) of the latents of x.

        Returns:
          Float32 features (B, t, h, w, d).
        """
        network = grid_features.NETWORKS[self.network]
        t, h, w = latent_shape
        frames = x[:, :: max(1, (x.shape[1] - 1) // max(1, t - 1)), :, :, :3]
        images = frames.reshape(-1, *frames.shape[2:])
        size = len(images), h * network.stride, w * network.stride, 3
        features = network.features(params, jax.image.resize(images, size, "cubic"))
        return jax.lax.stop_gradient(features.reshape(x.shape[0], t, h, w, -1))

    def __call__(
        self,
        key: PRNGKeyArray,
        z: Float[Array, "b t h w c"],
        kernel: Float[Array, "c d"],
        features: Float[Array, "b t h w d"],
    ) -> Float[Array, ""]:
        """Computes the `distance` of projected latents to features.

        Args:
          key: random key of the latent pixels that are compared, if a frame has more than TOKENS.
          z: latents (b, t, h, w, c).
          kernel: learned projection (c, d).
          features: features (b, t, h, w, d).

        Returns:
          Mean () over frames.
        """
        projected, target = (
            a.reshape(-1, a.shape[2] * a.shape[3], a.shape[4]) for a in (z @ kernel, features)
        )
        if projected.shape[1] > TOKENS:
            chosen = jax.random.permutation(key, projected.shape[1])[:TOKENS]
            projected, target = projected[:, chosen], target[:, chosen]
        return distance(projected, target, self.point_margin, self.pair_margin)


def distance(
    projected: Float[Array, "n p d"], target: Float[Array, "n p d"], point_margin: float, pair_margin: float
) -> Float[Array, ""]:
    """Computes VA-VAE's loss (arXiv 2501.01423, equations 5 and 6) with equal weights of its two parts.

    Args:
      projected: projected latents (n, p, d) of n frames.
      target: features (n, p, d).
      point_margin: m1.
      pair_margin: m2.

    Returns:
      The mean () over i of max(0, 1 - m1 - cos(z_i, f_i)), plus the mean over i and j of
      max(0, |cos(z_i, z_j) - cos(f_i, f_j)| - m2).
    """
    # 1e-12, because the square root has no finite derivative at 0.
    z, f = (a * jax.lax.rsqrt(jnp.square(a).sum(-1, keepdims=True) + 1e-12) for a in (projected, target))
    points = jax.nn.relu(1 - point_margin - (z * f).sum(-1)).mean()
    similar = [jnp.einsum("nid,njd->nij", a, a) for a in (z, f)]
    return points + jax.nn.relu(jnp.abs(similar[0] - similar[1]) - pair_margin).mean()


@jax.custom_vjp
def pulled(
    z: Float[Array, "..."], gradient: Float[Array, "..."], weight: Float[Array, ""]
) -> Float[Array, "..."]:
    """Returns z; the backward pass adds `gradient` to its cotangent, in proportion to the cotangent's norm.

    This is VA-VAE's adaptive weight. The paper takes the ratio of the two gradients' norms at the kernel of
    the encoder's last layer. Here it is taken at the latent, where both are known without another pass.

    Args:
      z: latents.
      gradient: gradient of the alignment with respect to z.
      weight: norm of the added gradient, relative to that of the cotangent.

    Returns:
      z.
    """
    del gradient, weight
    return z


def _forward(z, gradient, weight):
    return z, (gradient, weight)


def _backward(kept, cotangent):
    gradient, weight = kept
    ratio = jnp.linalg.norm(cotangent.ravel()) / (jnp.linalg.norm(gradient.ravel()) + 1e-12)
    return cotangent + weight * ratio * gradient, jnp.zeros_like(gradient), jnp.zeros_like(weight)


pulled.defvjp(_forward, _backward)
