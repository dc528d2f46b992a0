"""Training from configuration to checkpoint, read from top to bottom."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vaejax import cli as command
from vaejax.config import check as config_check
from vaejax.config import schema as configuration
from vaejax.data import bucket, pipeline, sources
from vaejax.errors import InputError, Stopped, TrainingFailed
from vaejax.evaluate import latent_metrics as latents
from vaejax.evaluate import latent_statistics as normalisation
from vaejax.evaluate.codecs.vae import RunCodec
from vaejax.evaluate.during_training import TrainingEvaluation
from vaejax.losses import adversarial
from vaejax.probe.during_training import TrainingProbe
from vaejax.rundir import metrics as report
from vaejax.rundir import skipped_samples as bad_samples
from vaejax.rundir.checkpoint import Checkpoints
from vaejax.runtime import chips as hardware
from vaejax.runtime import distributed as multihost
from vaejax.runtime import mesh as sharding
from vaejax.runtime.preemption import Preemption
from vaejax.runtime.profiler import Profile
from vaejax.runtime.watchdog import UPDATE, Watchdog
from vaejax.train import optimizer as optim
from vaejax.train import state as train_state
from vaejax.train.fault import Fault
from vaejax.train.guard import BadSteps
from vaejax.train.programs import Programs, Update
from vaejax.train.state import TrainState

HARMLESS = ("remat", "dtype")  # keys of model that change no parameter
SETTLING = 100  # updates, before which nothing is said of a discriminator


def fit(config: ConfigDict, workdir: str, faults: Sequence[Fault] = ()) -> bool:
    """Trains to config.steps, resuming what DIR holds, and leaves there what the README lists.

    Args:
      config: of the keys in config.py.
      workdir: DIR, made when missing.
      faults: of tests.

    Returns:
      True when done, False when a signal stopped it after saving.

    Raises:
      InputError: for a configuration or an input that cannot be used.
      TrainingFailed: when update after update is not finite, whatever the samples.
    """
    config_check.check(config)
    with Watchdog(config.recovery.stall) as watchdog:
        return _fit(config, workdir, faults, watchdog)


def _fit(config: ConfigDict, workdir: str, faults: Sequence[Fault], watchdog: Watchdog) -> bool:
    """`fit`, watched from the moment that the samples are known."""
    # The setting: mesh, buckets, samples.
    mesh = sharding.make(config.mesh)
    is_main = jax.process_index() == 0
    buckets = configuration.buckets(config, sharding.batch_parts(mesh), sharding.height_parts(mesh))
    rows = {b.name: sharding.rows(mesh, b.batch) for b in buckets}
    directory = _make_workdir(workdir)
    multihost.check_shared(directory)
    samples = multihost.first_alone(lambda: sources.open_sources(config.data))
    multihost.check_same("photos and clips", lambda: sources.digest(samples))
    sources.check_buckets(samples, buckets, config.data)
    for line in sources.not_evaluated(samples, buckets, config.data) if is_main else ():
        print(line, file=sys.stderr)
    bad = bad_samples.BadSamples(directory / "bad_samples.jsonl", writes=is_main)
    bad.found(bad_samples.unreadable(samples))

    # Where an earlier run in this folder left off.
    watchdog.doing("starting", 0, patient=True)
    checkpoints = Checkpoints(directory, config.checkpoint.keep, config.checkpoint.best)
    start = multihost.gathered(checkpoints.latest() or 0)[0]
    if start:
        _check_same_networks(checkpoints.config(start), config, "this workdir", discriminators=True)
    elif config.init:
        _check_init(config)
    if start >= config.steps:
        if is_main:
            print(f"already at step {start} of {config.steps}; nothing to do", file=sys.stderr)
        missing = config.eval.latent_samples and latents.load(directory, start) is None
        if any(multihost.gathered(bool(missing))):
            normalisation.of_run(RunCodec.open(str(directory)), str(directory), start)
        return True

    # The model, its objective, its adversary and its optimiser, every shard born on its device.
    programs = Programs.of(config, buckets, mesh, faults)
    model, adversary = programs.model, programs.adversary
    networks = {"alexnet": configuration.load_lpips("alexnet")}
    if programs.lpips_params:  # scores are of the published AlexNet, whatever file a run trains on
        networks.setdefault(config.loss.perceptual.network, programs.lpips_params)

    def restore(step):
        """The state and the data position at a step that was saved, or at the beginning."""
        state, shardings = train_state.create(model, programs.optimizer, adversary, mesh, config.seed)
        positions = {b.name: bucket.draws(b, config.seed, step) for b in buckets}
        if step:
            state, saved = checkpoints.restore(step, state, shardings)
            positions |= {name: n for name, n in saved.items() if name in positions}
        elif config.init:
            state = _start_from(config, state, shardings)
        return state, positions

    state, positions = restore(start)
    if is_main:
        _write_config(directory, config)
        print(report.parameter_overview(state.params["autoencoder"]), file=sys.stderr)
    peak_flops = hardware.flops(jax.devices()[0].device_kind) * mesh.size
    update = Update(programs, buckets, config.seed + 1, is_main, counts_flops=bool(peak_flops))
    profile = Profile(directory / "profile", config.profile, is_main)
    bad_steps = BadSteps(directory / "bad_steps.jsonl", start, writes=is_main)
    positions |= bad_steps.positions(start)
    preemption = Preemption()

    def evaluation_stops():
        """Whether evaluation is to give up, which asks now and then; the last is waited for."""
        watchdog.doing("evaluating", step, patient=True)
        return preemption.received() and step < config.steps

    def probe_stops():
        watchdog.doing("probing", step, patient=True)
        return preemption.received()

    held_out = TrainingEvaluation(
        samples, buckets, config, model, programs.objective, mesh, networks, evaluation_stops
    )
    probe = None
    if config.probe.every:
        probe = TrainingProbe(samples, buckets, config, model, mesh, probe_stops)
    writer = report.writers(directory, start, is_main)
    writer.write_hparams(dict(config.to_dict()))
    progress = report.Progress(config.steps, start, is_main=is_main, peak_flops=peak_flops)
    learning_rate = optim.learning_rate(config.optim, config.steps)
    alarms: dict[str, str | None] = {}

    def updates_from(step):
        return pipeline.train_stream(
            samples,
            buckets,
            config.data,
            seed=config.seed,
            start_step=step,
            positions=positions,
            rows=rows,
        )

    def judge(step, batches, terms):
        """Reads whether the update of `step` was finite, which waits for the device."""
        if terms is not None:
            # Finite each, they may be too much together: then all of them are named.
            spoiled = [name for name in batches if not terms[name]["finite"]] or list(batches)
            bad_steps.judge(step, bool(terms["all"]["finite"]), {name: batches[name] for name in spoiled})

    def log(step, latest):
        latest = jax.device_get(latest)
        scalars = {f"train/{b}/{k}": v for b, t in latest.items() for k, v in t.items() if k != "finite"}
        scalars |= {f"train/{b}/compile_seconds": s for b, s in update.compile_seconds.items()}
        update.compile_seconds.clear()
        scalars["train/all/learning_rate"] = jax.device_get(learning_rate(step - 1))
        scalars["train/all/bad_steps"] = bad_steps.total
        writer.write_scalars(step, scalars | progress.log(step, scalars))
        settled = adversary and step >= max(adversary.start, adversary.start - adversary.warmup + SETTLING)
        for name in adversary.discriminators if settled else ():
            told = adversarial.alarm(name, scalars[f"train/all/accuracy_{name}"])
            if told and told != alarms.get(name) and is_main:
                print(f"step {step}: {told}", file=sys.stderr)
            alarms[name] = told

    def evaluate(step, state):
        try:
            scores = held_out.evaluate(state.ema, state.params)
        except Stopped:
            return {}
        writer.write_scalars(step, {f"eval/{name}": value for name, value in scores.items()})
        if is_main:
            print(held_out.table(step, scores), file=sys.stderr)
        return scores

    def generate(step, state):
        scores, picture = probe.evaluate(state.ema)
        writer.write_scalars(step, {f"eval/{name}": value for name, value in scores.items()})
        if is_main and scores:
            print(probe.line(step, scores), file=sys.stderr)
            report.write_picture(directory, step, f"{probe.bucket.name}_generated", picture)
            writer.write_images(step, {f"eval/{probe.bucket.name}/generated": picture})
        return scores

    def show(step, state):
        with contextlib.suppress(Stopped):
            for name, *columns in held_out.panels(state.ema):
                if is_main:
                    panel = report.write_panels(directory, step, name, *columns, config.data.fps)
                    writer.write_images(step, {f"eval/{name}/panel": panel[None]})

    every = [config.log_every, *(config[part].every for part in ("eval", "probe", "panels", "checkpoint"))]

    # The loop. What a step says is read after the next is under way, so that the device never waits for us.
    with contextlib.ExitStack() as stack:
        stream = updates_from(start)
        stack.enter_context(preemption)
        stack.callback(lambda: writer.close())
        stack.enter_context(checkpoints)
        stack.callback(lambda: stream.close())
        stack.callback(profile.close)
        step, previous, latest = start, (start - 1, {}, None), {}
        if config.init and not start:
            evaluate(0, state)  # what the run starts from
        while step < config.steps:
            with progress.paused():
                update.prepare(step, lambda what, step=step: watchdog.doing(what, step, patient=True))
            with profile.update(step):
                watchdog.doing("waiting for samples", step)
                asked = time.monotonic()
                batches = next(stream).batches
                waited = time.monotonic() - asked
                watchdog.doing(UPDATE, step)
                state, terms = update(state, batches)
                judge(*previous)
            profile.done(step, terms)
            previous = step, batches, terms
            latest |= terms
            step += 1
            for name in batches:
                positions[name] += 1
                bad.replaced(batches[name].bad)
            drawn = [b for b in buckets if b.name in batches]
            progress.tick(
                sum(b.batch for b in drawn),
                sum(b.batch * b.pixels for b in drawn),
                waited,
                sum(update.model_flops.get(b.name, 0) for b in drawn),
            )

            stopping, last = preemption.requested(step), step == config.steps
            due = logging, scoring, probing, showing, saving = [n and (step % n == 0 or last) for n in every]
            if any(due) or stopping or bad_steps.in_row:
                judge(*previous)
                previous = step - 1, {}, None
            if any(due) or stopping:
                bad.write()
            if logging:
                log(step, latest)
                latest = {}
            with progress.paused():
                scores = {}
                if (scoring or probing or showing) and (last or not stopping):
                    watchdog.doing("evaluating", step, patient=True)
                    scores = evaluate(step, state) if scoring else {}
                    scores |= generate(step, state) if probing else {}
                    if showing:
                        show(step, state)
                    stopping = stopping or preemption.received()
                # Amid bad steps the state may be the reason: the last checkpoint is the better one.
                if last or ((stopping or saving) and not bad_steps.in_row):
                    watchdog.doing("saving a checkpoint", step, patient=True)
                    writer.flush()
                    checkpoints.save(state, step, positions, json.loads(config.to_json_best_effort()), scores)
            if stopping and not last:
                saved = checkpoints.latest() or 0
                break
            if bad_steps.in_row >= config.recovery.bad_steps and not last:
                back = multihost.gathered(checkpoints.latest() or 0)[0]
                _check_rollbacks(bad_steps, step, back, config.recovery.rollbacks)
                bad_steps.rolled_back(step, back, positions)
                if is_main:
                    print(f"step {step}: back to step {back}, on with other samples", file=sys.stderr)
                state = None  # there may be no room for two
                state, _ = restore(back)
                stream.close()
                writer.close()
                step, previous, latest = back, (back - 1, {}, None), {}
                stream, writer = updates_from(back), report.writers(directory, back, is_main)
                if config.init and not back:
                    evaluate(0, state)
                progress = report.Progress(config.steps, back, is_main=is_main, peak_flops=peak_flops)
        watchdog.doing("writing the last checkpoint", step, patient=True)
    watchdog.doing("measuring latents", step, patient=True)
    if step == config.steps and config.eval.latent_samples:
        # What the user of a diffusion model normalises latents by stays with the last checkpoint.
        codec = RunCodec("run", model, state.ema["autoencoder"], mesh=mesh)
        normalisation.keep(codec, samples, buckets, config, directory, step)
    if step < config.steps and is_main:
        print(f"stopped by a signal, saved at step {saved}; run the same command to go on", file=sys.stderr)
    return step == config.steps


def _make_workdir(workdir: str) -> pathlib.Path:
    if "://" in workdir:
        raise InputError(
            f"--workdir={workdir}; accepted: a folder of this machine's file system, mounted ones too"
        )
    return command.made_folder(workdir, "--workdir")


def _write_config(directory: pathlib.Path, config: ConfigDict) -> None:
    partial = directory / "config.json.partial"
    partial.write_text(config.to_json_best_effort(indent=2) + "\n")
    partial.replace(directory / "config.json")


def _check_same_networks(saved: dict, config: ConfigDict, where: str, discriminators: bool = False) -> None:
    """Keys that a checkpoint's parameters depend on must have the values that it was trained with."""
    now = json.loads(config.to_json_best_effort())
    sections = [("model", saved["model"], now["model"])]
    if discriminators and saved["loss"]["weights"].get("adversarial"):
        design = ("discriminators", "kind", "width", "spectral_norm")
        was = {name: saved["loss"]["adversarial"][name] for name in design}
        sections.append(("loss.adversarial", was, now["loss"]["adversarial"]))
    for section, was, is_now in sections:
        for key, value in was.items():
            if is_now.get(key) != value and key not in HARMLESS:
                raise InputError(
                    f"{section}.{key} = {is_now.get(key)!r}, but the run in {where} has {value!r};"
                    f" accepted: {value!r}, or another run"
                )


def _check_init(config: ConfigDict) -> None:
    with Checkpoints(config.init, read_only=True) as source:
        step = multihost.gathered(source.latest())[0]  # it may be under way
        if step is None:
            raise InputError(f"init = {config.init}: no checkpoint in it; accepted: the --workdir of a run")
        _check_same_networks(source.config(step), config, config.init)


def _start_from(config: ConfigDict, state: TrainState, shardings: TrainState) -> TrainState:
    """The first state of a run whose parameters are another run's averaged ones."""
    with Checkpoints(config.init, read_only=True) as source:
        step = multihost.gathered(source.latest())[0]
        average = source.restore(step, state.replace(opponents={}), shardings.replace(opponents={}))[0].ema
    return state.replace(params=average, ema=jax.tree.map(jnp.copy, average))


def _check_rollbacks(bad_steps: BadSteps, step: int, back: int, most: int) -> None:
    if bad_steps.returns_to(back) >= most:
        raise TrainingFailed(
            f"step {step}: {bad_steps.in_row} updates in a row are not finite after {most} returns"
            f" (recovery.rollbacks) to step {back}; bad_steps.jsonl names their samples. Lower"
            " optim.learning_rate or optim.agc, or leave a term out"
        )
