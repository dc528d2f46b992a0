"""A small run for the tests of python -m vaejax.codec, and a function that calls the command."""

import json
from fractions import Fraction

import av
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from tests.support.frames import pans
from tests.support.models import SMALL, randomised
from vaejax.codec.__main__ import main
from vaejax.configs import demo
from vaejax.rundir import latent_statistics
from vaejax.rundir.checkpoint import Checkpoints
from vaejax.runtime import mesh as sharding
from vaejax.train.state import TrainState, to_items

NTSC = Fraction(24000, 1001)
OLD = 3  # step of an older checkpoint, whose parameters differ


def write(folder):
    """Writes a run with two checkpoints and the statistics of their latents, and returns its folder."""
    config = demo.get_config("tiny")
    config.model.update({k: tuple(v) if isinstance(v, list) else v for k, v in SMALL.items()})
    (folder / "config.json").write_text(config.to_json_best_effort(indent=2))
    mesh = sharding.make_mesh(ConfigDict({"data": 8, "fsdp": 1, "space": 1}))
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (OLD, 7):
            average = jax.tree.map(lambda x, s=step: x * (1 - s / 20), randomised()[1])
            params = {"autoencoder": average, "likelihood": {"log_scale": jnp.zeros(())}}
            state = TrainState(jnp.zeros((), jnp.int32), params, params, optax.adam(1e-3).init(params), {})
            state = jax.device_put(state, sharding.state_shardings(mesh, state))
            checkpoints.save(step, to_items(state), {}, json.loads(config.to_json_best_effort()), {})
    for step in (OLD, 7):
        latent_statistics.store(folder, step, {"mean": [0.1, -0.2, 0.3, 0.0], "std": [1.0, 2.0, 0.5, 1.5]})
    return str(folder)


def run(model, *arguments):
    return main([*map(str, arguments), f"--model={model}"])


def shown(path):
    """The frames' times in seconds from the first, (H, W), and the frame rate in the header, read by PyAV."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = np.array([float(frame.pts * frame.time_base) for frame in frames])
        return times - times[0], (frames[0].height, frames[0].width), stream.average_rate


def pan(length, height=32, width=48):
    return list(pans(1, length, height, width)[0])
