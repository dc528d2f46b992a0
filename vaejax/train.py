"""Training from configuration to checkpoint, read from top to bottom."""

import contextlib
import errno
import functools
import json
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vaejax import config as configuration
from vaejax import mesh as sharding
from vaejax import optim, report, train_state, train_step
from vaejax.checkpoint import Checkpoints
from vaejax.data import bad_samples, bucket, pipeline, sources
from vaejax.errors import InputError
from vaejax.evaluation.held_out import HeldOut
from vaejax.models.autoencoder import Autoencoder
from vaejax.preemption import Preemption


def fit(config: ConfigDict, workdir: str) -> bool:
    """Trains to config.steps, resuming what DIR holds, and leaves there what the README lists.

    Args:
      config: of the keys in config.py.
      workdir: DIR, made when missing.

    Returns:
      True when done, False when a signal stopped it after saving.

    Raises:
      InputError: for a configuration or an input that cannot be used.
      FloatingPointError: at the first loss or gradient that is not finite.
    """
    # The setting: mesh, buckets, samples.
    configuration.check(config)
    mesh = sharding.make(config.mesh)
    is_main = jax.process_index() == 0
    architecture = configuration.architecture(config.model)
    buckets = bucket.parse_buckets(
        config.data.buckets,
        architecture.spatial_factor,
        architecture.temporal_factor,
        shards=sharding.batch_shards(mesh),
        space=mesh.shape["space"],
    )
    directory = _make_workdir(workdir)
    samples = sources.open_sources(config.data)
    sources.check_buckets(samples, buckets, config.data)
    bad = bad_samples.BadSamples(directory / "bad_samples.jsonl") if is_main else None
    if is_main:
        bad.found(bad_samples.unreadable(samples))

    # Where an earlier run in this folder left off.
    checkpoints = Checkpoints(directory, config.checkpoint.keep, config.checkpoint.best)
    start = checkpoints.latest() or 0
    if start:
        _check_same_model(checkpoints.config(start), config)
    if is_main:
        _write_config(directory, config)
    if start >= config.steps:
        print(f"already at step {start} of {config.steps}; nothing to do", file=sys.stderr)
        return True

    # The model, its objective and its optimiser, every shard born on its device.
    model, objective = Autoencoder(architecture), configuration.objective(config.loss)
    optimizer, clipping = optim.optimizer(config.optim, config.steps), optim.clipping(config.optim)
    state, shardings = train_state.create(model, optimizer, mesh, config.seed)
    if is_main:
        print(report.parameter_overview(state.params["autoencoder"]), file=sys.stderr)

    positions = {b.name: bucket.draws(b, config.seed, start) for b in buckets}
    if start:
        state, saved_positions = checkpoints.restore(start, state, shardings)
        positions |= {name: n for name, n in saved_positions.items() if name in positions}
    writer = report.writers(directory, start, is_main)
    writer.write_hparams(dict(config.to_dict()))
    progress = report.Progress(config.steps, start, is_main=is_main)

    # One update: gradients of every bucket drawn, then one step of the optimiser.
    zeros = jax.jit(functools.partial(jax.tree.map, jnp.zeros_like), out_shardings=shardings.params)
    gradients_of = {
        b.name: _compile_gradients(b, state, shardings, mesh, model, objective, is_main) for b in buckets
    }
    apply_gradients = jax.jit(
        functools.partial(
            train_step.apply_gradients, optimizer=optimizer, clipping=clipping, ema_decay=config.ema.decay
        ),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    key = jax.device_put(jax.random.key(config.seed + 1), sharding.replicated(mesh))

    def update(state, batches):
        gradients, terms = zeros(state.params), {}
        for name, batch in batches.items():
            frames = sharding.global_frames(mesh, batch.frames)
            gradients, terms[name] = gradients_of[name](state, gradients, frames, key)
        state, terms["all"] = apply_gradients(state, gradients)
        return state, terms

    held_out = HeldOut(samples, buckets, config, model, objective, mesh)

    def evaluate(step) -> dict[str, float]:
        scores = held_out.evaluate(state.ema, state.params)
        writer.write_scalars(step, {f"eval/{name}": value for name, value in scores.items()})
        if is_main:
            print(held_out.table(step, scores), file=sys.stderr)
        return scores

    def save(step, scores):
        checkpoints.save(state, step, positions, json.loads(config.to_json_best_effort()), scores)

    # The loop. Terms of a step are read after the next is under way, so that the device never waits for us.
    stream = pipeline.train_stream(
        samples,
        buckets,
        config.data,
        seed=config.seed,
        start_step=start,
        positions=positions,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )
    with Preemption() as preemption, contextlib.closing(writer), checkpoints, stream:
        step, before, latest, scores = start, None, {}, {}
        while step < config.steps:
            asked = time.monotonic()
            batches = next(stream).batches
            waited = time.monotonic() - asked
            state, terms = update(state, batches)
            step += 1
            _finite(step - 1, before)
            before, latest = terms, latest | terms
            drawn = [b for b in buckets if b.name in batches]
            for b in drawn:
                positions[b.name] += 1
                if is_main:
                    bad.replaced(batches[b.name].bad)
            progress.tick(sum(b.batch for b in drawn), sum(b.batch * b.pixels for b in drawn), waited)

            stopping = preemption.requested(step)
            last = step == config.steps
            if step % config.log_every == 0 or last:
                _finite(step, terms)
                scalars = {f"train/{b}/{k}": float(v) for b, t in latest.items() for k, v in t.items()}
                scalars["train/all/learning_rate"] = float(
                    optim.learning_rate(config.optim, config.steps)(step - 1)
                )
                writer.write_scalars(step, scalars | progress.log(step, scalars))
                latest = {}
            with progress.paused():
                scores = evaluate(step) if step % config.eval.every == 0 or last else {}
                if step % config.panels.every == 0 or last:
                    for name, *columns in held_out.panels(state.ema):
                        if is_main:
                            panel = report.write_panels(directory, step, name, *columns, config.data.fps)
                            writer.write_images(step, {f"eval/{name}/panel": panel[None]})
                if step % config.checkpoint.every == 0 or last or stopping:
                    _finite(step, terms)
                    writer.flush()
                    save(step, scores)
            if stopping and not last:
                break
    if step < config.steps and is_main:
        print(f"stopped by a signal at step {step}, saved; run the same command to go on", file=sys.stderr)
    return step == config.steps


def _compile_gradients(b, state, shardings, mesh, model, objective, is_main):
    """The compiled gradient step of one bucket: (state, gradients, frames, key) to (gradients, terms)."""
    if is_main:
        print(f"compiling {b.name}, batch {b.batch} ...", end=" ", file=sys.stderr, flush=True)
    begin = time.monotonic()
    step = jax.jit(
        functools.partial(train_step.bucket_gradients, weight=b.weight, model=model, objective=objective),
        donate_argnums=1,
        out_shardings=(shardings.params, None),
    )
    shape = (b.batch, b.frames, b.height, b.width, 3)
    frames = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding.frames_sharding(mesh))
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=sharding.replicated(mesh))
    compiled = step.lower(state, state.params, frames, key).compile()
    if is_main:
        print(f"{time.monotonic() - begin:.1f} s", file=sys.stderr)
    return compiled


def _finite(step: int, terms) -> None:
    """Raises FloatingPointError naming the first number that is not finite: training on would only spoil."""
    for name, values in (terms or {}).items():
        for key, value in values.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"step {step}: {name} {key} is {float(value)}; the last checkpoint is untouched."
                    " Lower optim.learning_rate, set optim.agc, or look at the samples of this step."
                )


def _make_workdir(workdir: str) -> pathlib.Path:
    if "://" in workdir:
        raise InputError(
            f"--workdir={workdir}; accepted: a folder of this machine's file system, mounted ones too"
        )
    directory = pathlib.Path(workdir).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(
            f"--workdir={workdir}: {error.strerror}; accepted: a folder that can be written"
        ) from error
    return directory


def _write_config(directory: pathlib.Path, config: ConfigDict) -> None:
    partial = directory / "config.json.partial"
    partial.write_text(config.to_json_best_effort(indent=2) + "\n")
    partial.replace(directory / "config.json")


def _check_same_model(saved: dict, config: ConfigDict) -> None:
    now = json.loads(config.model.to_json_best_effort())
    for key, value in saved["model"].items():
        if now.get(key) != value and key not in ("remat", "dtype"):  # these change no parameter
            raise InputError(
                f"model.{key} = {now.get(key)!r}, but the run in this workdir has {value!r};"
                f" accepted: {value!r}, or another --workdir"
            )
