"""Start and resume: the state and the data positions at a step, from a checkpoint or from another run."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.config import Config
from vaejax.data import bucket
from vaejax.errors import InputError
from vaejax.rundir.checkpoint import Checkpoints
from vaejax.train import state as states
from vaejax.train.guard import StepGuard
from vaejax.train.setup import Setup
from vaejax.train.state import TrainState

HARMLESS = ("remat", "dtype")  # keys of config.model that change no parameter
DESIGN = ("discriminators", "kind", "width", "spectral_norm")  # keys that discriminators depend on


def check_networks(checkpoints: Checkpoints, start: int, config: Config) -> None:
    """Checks that the checkpoint to start from has the networks of the configuration.

    Args:
      checkpoints: of this run.
      start: the step to resume from; 0 starts from config.init, if any.
      config: of this run.

    Raises:
      InputError: naming the first key that differs, or if config.init has no checkpoint.
    """
    if start:
        _check_same(checkpoints.config(start), config, "this workdir", discriminators=True)
    elif config.init:
        with Checkpoints(config.init, read_only=True) as source:
            _check_same(source.config(_latest(source, config.init)), config, config.init)


def restore(
    setup: Setup, checkpoints: Checkpoints, guard: StepGuard, step: int
) -> tuple[TrainState, dict[str, int]]:
    """The state and the data positions, batches drawn per bucket, after `step` updates.

    A rollback restores by this function as well; the guard then knows which samples come next.
    """
    config, programs = setup.config, setup.programs
    state = states.create(programs.model, programs.optimizer, programs.adversary, setup.mesh, config.seed)
    positions = {b.name: bucket.draws(b, config.seed, step) for b in setup.buckets}
    if step:
        items, saved = checkpoints.restore(step, states.to_items(state))
        state = states.from_items(state, items)
        positions |= {name: n for name, n in saved.items() if name in positions}
    elif config.init:
        state = _from_other_run(config.init, state)
    return state, positions | guard.positions(step)


def _from_other_run(name: str, state: TrainState) -> TrainState:
    """The initial state of a run whose parameters are the EMA parameters of another run."""
    with Checkpoints(name, read_only=True) as source:
        items = states.to_items(state.replace(discriminators={}))
        restored, _ = source.restore(_latest(source, name), items)
    average = restored["state"]["ema"]
    return state.replace(params=average, ema=jax.tree.map(jnp.copy, average))


def _latest(source: Checkpoints, name: str) -> int:
    step = source.latest_on_all_hosts()
    if step is None:
        raise InputError(f"init = {name}: no checkpoint in it; accepted: the --workdir of a run")
    return step


def _check_same(saved: Mapping[str, Any], config: Config, where: str, discriminators: bool = False) -> None:
    """Compares the keys that a checkpoint's parameters depend on; a key that no longer exists is ignored."""
    now = config.to_dict()
    sections = [("model", saved["model"], now["model"])]
    if discriminators and saved["loss"]["weights"].get("adversarial"):
        game = saved["loss"]["adversarial"]
        design = {name: game[name] for name in DESIGN if name in game}
        sections.append(("loss.adversarial", design, now["loss"]["adversarial"]))
    for section, was, is_now in sections:
        for key, value in was.items():
            value = tuple(value) if isinstance(value, list) else value
            if key in is_now and is_now[key] != value and key not in HARMLESS:
                raise InputError(
                    f"{section}.{key} = {is_now[key]!r}, but the run in {where} has {value!r};"
                    f" accepted: {value!r}, or another run"
                )
