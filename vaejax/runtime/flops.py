"""Floating-point operations of a traced computation: those of its convolutions and matrix products."""

import math
from collections.abc import Iterator

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval


def count(traced: ClosedJaxpr | Jaxpr) -> int:
    """Operations of all devices together, a multiplication and an addition counting two.

    Counted before XLA sees the program, for XLA counts the body of a loop once. What nothing depends on is
    left out, and so are zeros that padding and dilation put between values. Of a choice by platform the
    accelerators' branch counts, of another the costliest.

    Args:
      traced: `jax.jit(f).trace(...).jaxpr`, or what `jax.make_jaxpr` gives.
    """
    jaxpr = getattr(traced, "jaxpr", traced)
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
    """The computations that an equation calls, or chooses from."""
    params = dict(eqn.params)
    platforms = params.pop("branches_platforms", None)
    if platforms and None in platforms:
        params["branches"] = [params["branches"][platforms.index(None)]]
    for value in params.values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, (Jaxpr, ClosedJaxpr)):
                yield getattr(part, "jaxpr", part)


def _convolution(eqn: JaxprEqn) -> int:
    (lhs, rhs), out, p = (v.aval.shape for v in eqn.invars), eqn.outvars[0].aval.shape, eqn.params
    lhs_spec, rhs_spec, out_spec = p["dimension_numbers"]
    pairs = 1  # of an output's place and a kernel's that meet a value
    for i, (low, _) in enumerate(p["padding"]):
        size, kernel, outputs = lhs[lhs_spec[2 + i]], rhs[rhs_spec[2 + i]], out[out_spec[2 + i]]
        at = np.arange(outputs)[:, None] * p["window_strides"][i] - low
        at = at + np.arange(kernel) * p["rhs_dilation"][i]
        apart = p["lhs_dilation"][i]
        pairs *= int(((at >= 0) & (at <= (size - 1) * apart) & (at % apart == 0)).sum())
    return 2 * pairs * out[out_spec[0]] * out[out_spec[1]] * rhs[rhs_spec[1]]


def _product(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracted)
