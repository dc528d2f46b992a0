"""The model that a run starts from or learns from: config.init or config.teacher, kept in RUN/init."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.codec.load import (
    TrainedVAE,
    fingerprint,
    load_export,
    load_vae,
    read_export_config,
)
from vaejax.codec.save import save_vae
from vaejax.config import Config
from vaejax.errors import InputError
from vaejax.files import atomic_folder
from vaejax.models import surgery
from vaejax.models.autoencoder import Architecture, parameter_shapes
from vaejax.models.families import architecture_of_run
from vaejax.rundir.folder import RunFolder
from vaejax.runtime import distributed
from vaejax.train.state import HALVES, TrainState

HARMLESS = ("remat", "dtype")  # fields of a design on which no parameter depends
# Log-scale of the likelihood of a trained model that does not record its own: that of a mean error of .05.
TRAINED_LOG_SCALE = -3.0


def keep(config: Config, folder: RunFolder, resumes: bool) -> TrainedVAE | None:
    """Returns the model of config.init or config.teacher, which a new run keeps in RUN/init.

    If the configuration asks for more pixel channels than the model has, it is the widened model.

    All processes call this together. A resumed run reads RUN/init, so it does not need the original files.

    Args:
      config: configuration of the run.
      folder: folder of the run.
      resumes: whether the run has a checkpoint.

    Raises:
      InputError: if the model cannot be read, or is not the model that the configuration describes.
    """
    kind, path = ("init", config.init) if config.init else ("teacher", config.teacher)
    if not path or (resumes and not folder.init.is_dir()):  # versions up to 0.2 kept no copy
        return None

    def read() -> TrainedVAE:
        if not resumes and jax.process_index() == 0:
            try:
                vae = load_vae(path)
            except InputError as error:
                raise InputError(f"{kind} = {error}") from error
            check_same(vae.architecture, with_latents_of(config, vae), path)
            vae = widened(vae, config)
            with atomic_folder(folder.init) as unfinished:
                save_vae(unfinished, vae)
            folder.upload()
        elif folder.mirror:
            folder.mirror.pull()  # process 0 has uploaded it
        known = read_export_config(str(folder.init))
        if known is None:
            raise InputError(f"{folder.init}: damaged; accepted: the folder that the run wrote")
        return load_export(str(folder.init), known)

    return distributed.main_process_first(read)


def with_latents_of(config: Config, known: TrainedVAE | None) -> Config:
    """Returns the configuration with the latent shape of the model that it takes from init or teacher."""
    if known is None or (config.model.family and not config.student):
        return config
    names = ("latent_channels", "spatial_factor", "temporal_factor")
    shape = {name: getattr(known.architecture, name) for name in names}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **shape))


def check_same(known: Architecture, config: Config, path: str) -> None:
    """Raises an InputError if the model in `path` is not the one that the configuration describes."""
    trained = architecture_of_run(config, known)
    for half in ("encoder", "decoder"):
        if half == config.student:
            continue
        was, now = getattr(known, half), getattr(trained, half)
        if type(was) is not type(now):
            raise InputError(
                f"model.family = {config.model.family!r}, but {path} has another family; accepted: '', which"
                " takes the architecture of init"
            )
        for field in dataclasses.fields(was):
            value, other = getattr(was, field.name), getattr(now, field.name)
            if field.name == "pixel_channels":
                _check_channels(value, other, config, path)
            elif value != other and field.name not in HARMLESS:
                raise InputError(
                    f"model.{field.name} = {other!r}, but the model in {path} has {value!r}; accepted:"
                    f" {value!r}, or model.family = '', or another init"
                )


def _check_channels(was: int, now: int, config: Config, path: str) -> None:
    """Raises an InputError unless a model with `was` pixel channels may start a run with `now` channels."""
    if now < was:
        raise InputError(
            f"model.pixel_channels = {now}, but the model in {path} has {was}; accepted: {was} or more"
        )
    if now > was and len(config.optim.train) != len(HALVES):
        raise InputError(
            f"optim.train = {config.optim.train} with model.pixel_channels = {now}, but the model in {path}"
            f" has {was}; accepted: {HALVES}, because a frozen half cannot learn further channels"
        )


def widened(vae: TrainedVAE, config: Config) -> TrainedVAE:
    """Returns the model with the pixel channels of a run that starts from it, see `models/surgery.py`."""
    old, channels = vae.architecture, config.model.pixel_channels
    if config.student or old.pixel_channels == channels:
        return vae
    new = old.replace(pixel_channels=channels)
    params = surgery.widened(vae.params, parameter_shapes(new), old, new)
    return vae._replace(architecture=new, params=params, fingerprint=fingerprint(params))


def start_from(vae: TrainedVAE, state: TrainState, config: Config) -> TrainState:
    """Returns `state` with the parameters of `vae`, except those of a half that learns from a teacher."""
    given = {half: tree for half, tree in vae.params.items() if half != config.student}

    def placed(tree: dict) -> dict:
        return tree | {half: _like(tree[half], given[half]) for half in tree if half in given}

    params = state.params | {"autoencoder": placed(state.params["autoencoder"])}
    if not config.student:
        log_scale = TRAINED_LOG_SCALE if vae.log_scale is None else vae.log_scale
        params["likelihood"] = _like(state.params["likelihood"], {"log_scale": np.float32(log_scale)})
    average = jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema=average, frozen=placed(state.frozen))


def _like(old: Any, new: Any) -> Any:
    """The arrays `new` of this host, with the shardings of `old`."""

    def place(old: jax.Array, new: np.ndarray) -> jax.Array:
        new = np.asarray(new, old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])

    return jax.tree.map(place, old, new)
