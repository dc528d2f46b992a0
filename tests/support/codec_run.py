"""A small run for the tests of python -m vaejax.codec, and a function that calls the command."""

from fractions import Fraction

import av
import numpy as np

from tests.support import saved_run
from tests.support.frames import pans
from tests.support.models import SMALL, randomized
from vaejax.codec.__main__ import main
from vaejax.configs import demo
from vaejax.rundir import latent_statistics

NTSC = Fraction(24000, 1001)
OLD = 3  # step of an older checkpoint, whose parameters differ


def write(folder, **options):
    """Writes a run with two checkpoints and the statistics of their latents, and returns its folder."""
    config = demo.get_config("tiny")
    config.model.update(SMALL | options)
    averages = {step: saved_run.scaled(randomized(**options)[1], 1 - step / 20) for step in (OLD, 7)}
    saved_run.write(folder, config, averages)
    for step in averages:
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
