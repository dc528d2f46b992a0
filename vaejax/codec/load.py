"""A trained autoencoder as it lies on disk: in a run's checkpoint, or in what vaejax.export made of it."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.flax import load_file

from vaejax.errors import InputError, one_line
from vaejax.evaluate import latent_metrics as latents
from vaejax.files import UNFINISHED
from vaejax.models.autoencoder import Architecture, Autoencoder
from vaejax.rundir.folder import RunFolder

DTYPES = ("float32", "bfloat16")
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "vaejax.export"  # of an export's config.json; a run's has none

ACCEPTED = "the --workdir of a run, its checkpoints/STEP, or a folder of vaejax.export"


class Trained(NamedTuple):
    """An autoencoder and what is known of its latents.

    Attributes:
      name: where it was read.
      architecture: of the autoencoder.
      params: the averaged (EMA) parameters, model.init's 'params'; float32 arrays of this host.
      mean, std: of each latent channel over the training data, (c,) float32; None where nobody computed them.
      step: updates it was trained for.
      fingerprint: 16 hexadecimal digits of the parameters in float32: which model a latent belongs to.
    """

    name: str
    architecture: Architecture
    params: dict
    mean: np.ndarray | None
    std: np.ndarray | None
    step: int
    fingerprint: str


def open_trained(name: str, step: int | None = None, dtype: str = "") -> Trained:
    """Reads a run, which may be under way, or an export; nothing in it is changed.

    Args:
      name: 'RUN', 'RUN/checkpoints/STEP' or the folder of an export.
      step: of a completed checkpoint; None takes the name's, or the last.
      dtype: of the computation, 'float32' or 'bfloat16'; '' takes the one it was trained with.

    Raises:
      InputError: for a folder without either, without this step's checkpoint, or that is damaged.
    """
    if dtype and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}; accepted: {' or '.join(DTYPES)}")
    exported = exported_config(name)
    if exported is None:
        trained = _of_run(name, step)
    elif pathlib.Path(name).expanduser().resolve().name.endswith(UNFINISHED):
        raise InputError(f"{name}: an export that was not completed; accepted: {ACCEPTED}")
    else:
        trained = of_export(name, exported)
        if step is not None and step != trained.step:
            raise InputError(f"{name}: an export of step {trained.step}; accepted: that step, not {step}")
    if dtype:
        trained = trained._replace(architecture=dataclasses.replace(trained.architecture, dtype=dtype))
    return trained


def shapes(architecture: Architecture) -> dict:
    """The autoencoder's parameters, model.init's 'params', as shapes.

    Raises:
      ValueError, TypeError: for an architecture that is none.
    """
    side = 4 * architecture.spatial_factor
    clip = jax.ShapeDtypeStruct((1, 1 + architecture.temporal_factor, side, side, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(Autoencoder(architecture).init, key, clip, key)["params"]


def flat(params: dict) -> dict[str, Any]:
    """{'encoder.conv_in.kernel': array, ...} in alphabetical order."""
    return dict(sorted(traverse_util.flatten_dict(params, sep=".").items()))


def fingerprint(params: dict) -> str:
    """16 hexadecimal digits of names, shapes and bytes of parameters."""
    found = hashlib.blake2b(digest_size=8)
    for name, leaf in flat(params).items():
        leaf = np.ascontiguousarray(leaf, np.float32)
        found.update(f"{name} {leaf.shape}".encode())
        found.update(leaf)
    return found.hexdigest()


def _of_run(name: str, step: int | None) -> Trained:
    folder = RunFolder(name).path
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder / CONFIG}: no such file; accepted: {ACCEPTED}")
    step = RunFolder(name).step if step is None else step
    config = RunFolder(name).read_config()
    try:
        architecture = Architecture.of(config.model)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_autoencoder(name, error) from error
    step = _completed(name, folder, step)
    wanted = {"ema": {"autoencoder": _shapes_of(name, architecture)}}
    params = restored(name, folder / "checkpoints" / str(step) / "state", wanted)["ema"]["autoencoder"]
    known = latents.load(folder, step) or {}
    mean, std = (_channels(known.get(key)) for key in ("mean", "std"))
    return Trained(name, architecture, params, mean, std, step, fingerprint(params))


def exported_config(name: str) -> dict | None:
    """config.json of an export; None where there is none, or it is a run's."""
    try:
        found = json.loads((pathlib.Path(name).expanduser() / CONFIG).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def of_export(name: str, found: dict) -> Trained:
    """Reads an export, completed or not.

    Args:
      name: of its folder.
      found: its config.json.

    Raises:
      InputError: if it is damaged.
    """
    path = pathlib.Path(name).expanduser() / WEIGHTS
    try:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in found["architecture"].items()}
        architecture = Architecture(**fields)
        step, model, stored = int(found["step"]), str(found["fingerprint"]), found["weights"]["fingerprint"]
        mean, std = (_channels(found["latents"][key]) for key in ("mean", "std"))
        wanted = _shapes_of(name, architecture)
        params = traverse_util.unflatten_dict(load_file(path), sep=".")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(f"{name}: damaged export ({one_line(error)}); accepted: {ACCEPTED}") from error
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    _check_shapes(name, wanted, params)
    if fingerprint(params) != stored:
        raise InputError(f"{path}: not the weights that config.json tells of; accepted: {ACCEPTED}")
    return Trained(name, architecture, params, mean, std, step, model)


def _channels(values: list | None) -> np.ndarray | None:
    return None if values is None else np.asarray(values, np.float32)


def _shapes_of(name: str, architecture: Architecture) -> dict:
    try:
        return shapes(architecture)
    except (TypeError, ValueError) as error:
        raise _no_autoencoder(name, error) from error


def _no_autoencoder(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name}: config.json describes no autoencoder ({one_line(error)}); accepted: {ACCEPTED}"
    )


def _completed(name: str, folder: pathlib.Path, step: int | None) -> int:
    """The step asked for, or the last; a checkpoint that is being written does not count."""
    checkpoints = folder / "checkpoints"
    steps = sorted(ocp.utils.checkpoint_steps(checkpoints)) if checkpoints.is_dir() else []
    if not steps:
        raise InputError(f"{name}: no completed checkpoint in it; accepted: a run that saved one")
    if step is not None and step not in steps:
        raise InputError(
            f"{name}: no completed checkpoint of step {step}; accepted: {', '.join(map(str, steps))}"
        )
    return steps[-1] if step is None else step


def restored(name: str, path: pathlib.Path, wanted: dict) -> dict:
    """Those parts of an Orbax checkpoint, as arrays of this host, whatever mesh saved them.

    Args:
      name: of the run, for messages.
      path: of the checkpoint.
      wanted: a tree of shapes, part of what is there.

    Raises:
      InputError: if it cannot be read, or has other shapes.
    """
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            found = checkpointer.restore(
                path, args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True)
            )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name}: {path} cannot be read: {one_line(error)}; accepted: a run's") from error
    _check_shapes(name, wanted, found)
    return found


def _check_shapes(name: str, wanted: dict, found: dict) -> None:
    """Raises InputError, naming the first leaf, where two trees differ in names or shapes."""
    for where, expected, shape in _differences(wanted, found):
        raise InputError(f"{name}: {where} has the shape {shape}; accepted: {expected}, by config.json")


def _differences(wanted: dict, found: dict) -> Iterator[tuple[str, Any, Any]]:
    expected, there = ({k: v.shape for k, v in flat(tree).items()} for tree in (wanted, found))
    for where in sorted(expected | there):
        if expected.get(where) != there.get(where):
            yield where, expected.get(where, "nothing"), there.get(where, "nothing")
