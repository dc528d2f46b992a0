"""Writes a run that was not trained, with checkpoints of given parameters."""

import json
from collections.abc import Mapping

import jax
import numpy as np
import optax

from vaejax.rundir.checkpoint import Checkpoints
from vaejax.runtime import mesh as sharding
from vaejax.train.state import TrainState, to_items


def write(folder, config, averages: Mapping[int, dict], mesh=None):
    """Writes config.json and a checkpoint per step.

    Args:
      folder: the run's folder.
      config: the run's ConfigDict.
      averages: EMA parameters of the autoencoder by step; the parameters themselves are twice as large.
      mesh: devices that save the checkpoints together; None: one device.
    """
    (folder / "config.json").write_text(config.to_json_best_effort(indent=2))
    with Checkpoints(folder, keep=len(averages)) as checkpoints:
        for step, average in averages.items():
            average = jax.tree.map(np.asarray, average)
            ema = {"autoencoder": average, "likelihood": {"log_scale": np.float32(0)}}
            params = jax.tree.map(lambda x: 2 * x, ema)
            adam = optax.ScaleByAdamState(
                np.int32(step), *(jax.tree.map(np.zeros_like, params) for _ in range(2))
            )
            state = TrainState(np.int32(step), params, ema, (adam, optax.EmptyState()), {})
            state = jax.device_put(state, sharding.state_shardings(mesh, state) if mesh else None)
            checkpoints.save(step, to_items(state), {}, json.loads(config.to_json_best_effort()), {})
    return folder


def scaled(params, factor):
    """The parameters times a number, by NumPy, which compiles nothing."""
    return jax.tree.map(lambda x: np.asarray(x) * np.float32(factor), params)
