"""Latents together with what decoding needs to restore the original clip."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


def _binary(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda self, other: operation(self.values, other)


def _reflected(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda self, other: operation(other, self.values)


@flax.struct.dataclass
class Latent:
    """Latents of an image, a clip or a batch, and the size and dtype of the frames they came from.

    `latent.values` is the array. NumPy and JAX treat a `Latent` as this array: `numpy.asarray(latent)`,
    `jax.numpy.asarray(latent)`, their functions, arithmetic, comparisons and indexing return plain arrays.
    `latent.replace(values=array)` returns a `Latent` with other values. The object is a JAX pytree whose only
    leaf is `values`, so `jax.tree.map` works on it.

    Attributes:
      values: (h, w, c) for an image, (t, h, w, c) for a clip, (b, t, h, w, c) for a batch; float32.
      frames: number of original frames T, before padding with copies of the last frame.
      height, width: original H and W, before padding with copies of the edges.
      normalized: whether values are (z - mean) / std, with the statistics of the training latents.
      frame_dtype: data type of the original frames: 'uint8', or 'float32' in [-1, 1].
      model: fingerprint of the model that encoded the frames.
    """

    values: Any
    frames: int = flax.struct.field(pytree_node=False)
    height: int = flax.struct.field(pytree_node=False)
    width: int = flax.struct.field(pytree_node=False)
    normalized: bool = flax.struct.field(pytree_node=False)
    frame_dtype: str = flax.struct.field(pytree_node=False)
    model: str = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """Number of axes of the values."""
        return self.values.ndim

    @property
    def size(self) -> int:
        """Number of values."""
        return self.values.size

    @property
    def dtype(self) -> np.dtype:
        """Data type of the values."""
        return self.values.dtype

    def __repr__(self) -> str:
        kind = "normalized" if self.normalized else "not normalized"
        shape = "x".join(map(str, getattr(self.values, "shape", ())))
        return (
            f"Latent({shape} {kind}, of {self.frames}x{self.height}x{self.width} {self.frame_dtype} frames,"
            f" model {self.model})"
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype, copy=copy)

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]

    def __neg__(self) -> Any:
        return -self.values

    def __abs__(self) -> Any:
        return abs(self.values)

    __add__, __radd__ = _binary(operator.add), _reflected(operator.add)
    __sub__, __rsub__ = _binary(operator.sub), _reflected(operator.sub)
    __mul__, __rmul__ = _binary(operator.mul), _reflected(operator.mul)
    __truediv__, __rtruediv__ = _binary(operator.truediv), _reflected(operator.truediv)
    __floordiv__, __rfloordiv__ = _binary(operator.floordiv), _reflected(operator.floordiv)
    __mod__, __rmod__ = _binary(operator.mod), _reflected(operator.mod)
    __pow__, __rpow__ = _binary(operator.pow), _reflected(operator.pow)
    __matmul__, __rmatmul__ = _binary(operator.matmul), _reflected(operator.matmul)
    __lt__, __le__ = _binary(operator.lt), _binary(operator.le)
    __gt__, __ge__ = _binary(operator.gt), _binary(operator.ge)
    __eq__, __ne__ = _binary(operator.eq), _binary(operator.ne)
