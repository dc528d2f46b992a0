"""Floating-point operations of the convolutions and matrix products of a traced computation."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval


def count(traced: ClosedJaxpr | Jaxpr) -> int:
    """Counts the operations of all devices together; a multiplication and an addition count as two.

    XLA's own count is no substitute: it counts the body of a loop once. Dead code does not count, nor do
    products with the zeros of padding and dilation. If code has branches by platform, the default branch
    counts, which is the TPU's; of other branches the most expensive counts.

    Args:
      traced: `jax.jit(f).trace(...).jaxpr` or the result of `jax.make_jaxpr(f)(...)`.
    """
    jaxpr: Any = getattr(traced, "jaxpr", traced)
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return sum(map(_operations, needed.eqns))


def _operations(eqn: JaxprEqn) -> int:
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        return _convolution(eqn)
    if name == "dot_general":
        return _product(eqn)
    inner = [sum(map(_operations, jaxpr.eqns)) for jaxpr in _inner(eqn)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (eqn.params["length"] if name == "scan" else 1)


def _inner(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The computations that an equation calls or chooses from."""
    params = dict(eqn.params)
    platforms = params.pop("branches_platforms", None)
    if platforms and None in platforms:
        params["branches"] = [params["branches"][platforms.index(None)]]
    for value in params.values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, (Jaxpr, ClosedJaxpr)):
                jaxpr: Any = getattr(part, "jaxpr", part)
                yield jaxpr


def _convolution(eqn: JaxprEqn) -> int:
    (lhs, rhs), out, p = map(_shape, eqn.invars), _shape(eqn.outvars[0]), eqn.params
    lhs_spec, rhs_spec, out_spec = p["dimension_numbers"]
    pairs = 1  # pairs of output and kernel positions that meet at a value of the input, not at a padding zero
    for i, (low, _) in enumerate(p["padding"]):
        size, kernel, outputs = lhs[lhs_spec[2 + i]], rhs[rhs_spec[2 + i]], out[out_spec[2 + i]]
        position = np.arange(outputs)[:, None] * p["window_strides"][i] - low
        position = position + np.arange(kernel) * p["rhs_dilation"][i]
        spacing = p["lhs_dilation"][i]
        inside = (position >= 0) & (position <= (size - 1) * spacing)
        pairs *= int((inside & (position % spacing == 0)).sum())
    return 2 * pairs * out[out_spec[0]] * out[out_spec[1]] * rhs[rhs_spec[1]]


def _product(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = _shape(eqn.invars[0])
    return 2 * math.prod(_shape(eqn.outvars[0])) * math.prod(lhs[i] for i in contracted)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
