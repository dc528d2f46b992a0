"""The functions of a model are compiled once in a process, however often and wherever it is loaded."""

import contextlib

import jax
import numpy as np
import pytest

import vaejax
from tests.support import codec_run
from tests.support.frames import pans
from vaejax.codec import __main__, load, network
from vaejax.evaluate.codecs.vae import VaeCodec


@contextlib.contextmanager
def traces():
    """The names of the events in which JAX traces or compiles, as they happen."""
    events = []

    def listen(event, duration, **_):
        if "trace" in event or "compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_the_command_line_offers_the_dtypes_that_a_model_can_compute_in():
    assert __main__.COMPUTE_DTYPES == load.DTYPES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return codec_run.write(tmp_path_factory.mktemp("run"))


def use(codec):
    """Every direction, at once and in parts, of means and of samples; all that it gives."""
    clip = pans(1, 9, 16, 24)[0]
    latents = [codec.encode(clip), codec.encode(clip, key=jax.random.key(0)), codec.encode(clip[0])]
    frames = [codec.decode(each) for each in latents]
    encoder, decoder = codec.stream_encoder(), codec.stream_decoder((9, 16, 24))
    parts = [encoder.push(clip[:3]), encoder.push(clip[3:]), encoder.flush()]
    pieces = [decoder.push(part) for part in parts]
    return [*map(np.asarray, latents), *frames, *parts, *pieces, decoder.flush()]


def test_a_second_load_of_a_model_traces_nothing(run):
    with traces() as first:
        wanted = use(vaejax.load(run))
    assert any("jaxpr_trace" in event for event in first)
    with traces() as again:
        found = use(vaejax.load(run))
        # Parameters are arguments: another checkpoint is the same programs.
        use(vaejax.load(run, step=codec_run.OLD))
    assert again == []
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_codec_that_is_scored_runs_the_same_programs(run):
    frames = pans(2, 9, 16, 24)

    def score(codec):
        latents = codec.encode(frames)
        return latents, codec.decode(latents), codec.decode_chunked(latents, 2)

    wanted = score(VaeCodec.open(run))
    with traces() as again:
        found = score(VaeCodec.open(run))
    assert again == []
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert network.posterior._cache_size() >= 1
