"""The state and data positions that a run starts from: fresh, from another run, or from a checkpoint."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.config import Config
from vaejax.errors import InputError
from vaejax.files import expand_home
from vaejax.rundir.checkpoint import Checkpoints, SavedCheckpoints
from vaejax.train import state as states
from vaejax.train.guard import StepGuard
from vaejax.train.setup import Setup
from vaejax.train.state import TrainState

HARMLESS = ("remat", "dtype")  # keys of config.model on which no parameter depends
# Keys of config.loss.adversarial on which parameters depend.
DESIGN = ("discriminators", "kind", "width", "spectral_norm")


def check_init(checkpoints: SavedCheckpoints, config: Config) -> None:
    """Raises an InputError if neither this run nor `config.init`, if that is set, has a checkpoint."""
    if config.init and checkpoints.latest_on_all_hosts() is None:
        _existing(SavedCheckpoints(config.init).latest_on_all_hosts(), config.init)


def check_networks(checkpoints: Checkpoints, start: int, config: Config) -> None:
    """Checks that the checkpoint to start from has the networks of the configuration.

    Args:
      checkpoints: checkpoints of this run.
      start: step to resume from; 0 starts from config.init, if that is set.
      config: configuration of this run.

    Raises:
      InputError: if a setting differs that determines the parameters of a network, or if config.init has no
        checkpoint. The message names the setting.
      DamagedCheckpoint: if the checkpoint is damaged.
    """
    if start:
        _check_same(checkpoints.config(start), config, "this workdir", discriminators=True)
    elif config.init:
        source = SavedCheckpoints(config.init)
        saved = source.newest_whole(lambda step: source.config(_existing(step, config.init)))
        _check_same(saved, config, config.init)


def restore(
    setup: Setup, checkpoints: Checkpoints, guard: StepGuard, step: int
) -> tuple[TrainState, dict[str, int]]:
    """Returns the train state and the data positions with which a run starts, resumes or rolls back.

    After a rollback the data positions come from the guard, so that training continues with new samples. A
    bucket that the checkpoint does not know starts with its first sample.

    Args:
      setup: setup of the run.
      checkpoints: checkpoints of the run.
      guard: guard of the run, which records rollbacks.
      step: step of a complete checkpoint; 0 starts the run, from config.init if that is set.

    Returns:
      The state, and the number of samples already drawn per bucket, including earlier buckets.

    Raises:
      DamagedCheckpoint: if the checkpoint of the run is damaged.
    """
    config, state = setup.config, setup.initialize()
    positions, saved_with = {b.name: 0 for b in setup.buckets}, config.to_dict()
    if step:
        items, saved = checkpoints.restore(step, states.to_items(state))
        state = states.from_items(state, items)
        positions |= saved
        saved_with = checkpoints.config(step)
    elif config.init:
        state = _from_other_run(config.init, state)
    return state, positions | guard.positions(step, saved_with)


def _from_other_run(name: str, state: TrainState) -> TrainState:
    """Returns `state` with parameters and EMA set to the EMA of another run's latest whole checkpoint."""
    source, items = SavedCheckpoints(name), states.to_items(dataclasses.replace(state, discriminators={}))
    restored, _ = source.newest_whole(lambda step: source.restore(_existing(step, name), items))
    average = restored["state"]["ema"]
    return dataclasses.replace(state, params=average, ema=jax.tree.map(jnp.copy, average))


def _existing(step: int | None, name: str) -> int:
    """The step of a checkpoint of config.init; InputError if there is none."""
    if step is None:
        problem = "no checkpoint in this folder" if os.path.isdir(expand_home(name)) else "no such folder"
        raise InputError(f"init = {name}: {problem}; accepted: the --workdir of a run with a checkpoint")
    return step


def _check_same(saved: Mapping[str, Any], config: Config, where: str, discriminators: bool = False) -> None:
    """Raises an InputError if a key on which parameters depend differs between the two configurations.

    A key that only one of them has is ignored: another version of vaejax may have saved the checkpoint.
    """
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
                    f" accepted: {value!r}, or another {'--workdir' if discriminators else 'init'}"
                )
