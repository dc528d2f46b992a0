"""The state and data positions that a run starts from: fresh, from another run, or from a checkpoint."""

from collections.abc import Mapping
from typing import Any

from vaejax.config import Config
from vaejax.errors import InputError
from vaejax.rundir.checkpoint import Checkpoints
from vaejax.train import initial
from vaejax.train import state as states
from vaejax.train.guard import StepGuard
from vaejax.train.initial import HARMLESS
from vaejax.train.setup import Setup
from vaejax.train.state import TrainState

# Keys of config.loss.adversarial on which parameters depend.
DESIGN = ("discriminators", "kind", "width", "spectral_norm")
# Keys of config.loss whose terms have parameters of their own, and words for a run with and without them.
PARAMETERS = (
    ((("weights", "features"),), "projections", "no projections"),
    ((("weights", "alignment"),), "a projection of its latents", "no projection of its latents"),
    ((("latent", "blocks"), ("latent", "future")), "a learned token", "no learned token"),
)


def check_networks(checkpoints: Checkpoints, start: int, config: Config) -> None:
    """Checks that the checkpoint to resume from has the networks of the configuration.

    Args:
      checkpoints: checkpoints of this run.
      start: step to resume from; 0 checks nothing.
      config: configuration of this run.

    Raises:
      InputError: if a setting differs that determines the parameters of a network. The message names the
        setting.
      DamagedCheckpoint: if the checkpoint is damaged.
    """
    if start:
        _check_same(checkpoints.config(start), config)


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
    elif setup.known:
        state = initial.start_from(setup.known, state, config)
    return state, positions | guard.positions(step, saved_with)


def _check_same(saved: Mapping[str, Any], config: Config) -> None:
    """Raises an InputError if a key on which parameters depend differs between the two configurations.

    A key that only one of them has is ignored: another version of vaejax may have saved the checkpoint.
    """
    now = config.to_dict()
    trained = {key: value for key, value in saved.get("optim", {}).items() if key == "train"}
    sections = [("model", saved["model"], now["model"]), ("optim", trained, now["optim"])]
    if saved["loss"]["weights"].get("adversarial"):
        game = saved["loss"]["adversarial"]
        design = {name: game[name] for name in DESIGN if name in game}
        sections.append(("loss.adversarial", design, now["loss"]["adversarial"]))
    losses = saved["loss"], now["loss"]
    for keys, has_parameters, has_none in PARAMETERS:
        had, has = (any(loss[part].get(name) for part, name in keys) for loss in losses)
        if had != has:
            settings = ", ".join(f"loss.{part}.{name} = {now['loss'][part][name]}" for part, name in keys)
            raise InputError(
                f"{settings}, but the run in this workdir has {has_parameters if had else has_none};"
                f" accepted: {'a value above 0' if had else '0'}, or another --workdir"
            )
    for section, was, is_now in sections:
        for key, value in was.items():
            value = tuple(value) if isinstance(value, list) else value
            if key in is_now and is_now[key] != value and key not in HARMLESS:
                raise InputError(
                    f"{section}.{key} = {is_now[key]!r}, but the run in this workdir has {value!r};"
                    f" accepted: {value!r}, or another --workdir"
                )
