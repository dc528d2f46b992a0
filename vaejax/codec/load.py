"""Reads a trained autoencoder from a run's checkpoint, an export or published weights."""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.flax import load_file

from vaejax.codec.published import is_published, read_published
from vaejax.config.schema import Config, ModelConfig
from vaejax.errors import InputError, one_line
from vaejax.files import UNFINISHED
from vaejax.models import families
from vaejax.models.autoencoder import Architecture, parameter_shapes
from vaejax.rundir import latent_statistics, mirror, wholeness
from vaejax.rundir.checkpoint import SavedCheckpoints
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.wholeness import DamagedCheckpoint

DTYPES = ("float32", "bfloat16")
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = "vaejax.export"  # value of 'format' in an export's config.json; a run's config.json has no such key

ACCEPTED = "the --workdir of a run, its checkpoints/STEP, the folder of an export, or a published VAE"

Params = dict[str, Any]


class TrainedVAE(NamedTuple):
    """An autoencoder with its parameters and the statistics of its latents.

    Attributes:
      name: the path that the autoencoder was read from.
      architecture: hyperparameters of the autoencoder.
      params: averaged (EMA) parameters: the tree 'params' of `model.init`, float32 arrays on this host.
      mean, std: statistics of each latent channel over the training data, (c,) float32; None if unknown.
      step: number of training updates.
      fingerprint: hash of the trained float32 parameters, 16 hexadecimal digits; latents record it.
      log_scale: log-scale of the likelihood, see losses/objective.py; None if unknown.
    """

    name: str
    architecture: Architecture
    params: Params
    mean: Float32[np.ndarray, " c"] | None
    std: Float32[np.ndarray, " c"] | None
    step: int
    fingerprint: str
    log_scale: float | None = None


def load_vae(name: str, step: int | None = None, dtype: str = "") -> TrainedVAE:
    """Reads a run, which may still be training, an export or a published VAE, without changing it.

    Args:
      name: 'RUN', 'RUN/checkpoints/STEP', the folder of an export, or a published VAE, see `read_published`;
        a path or a URL.
      step: step of a completed checkpoint; default: the one in `name`, else the latest.
      dtype: compute dtype, 'float32' or 'bfloat16'; '' keeps the dtype of training.

    Raises:
      InputError: if the folder is neither a run nor an export, is damaged, or has no completed checkpoint of
        this step; or if `dtype` has another value.
    """
    if dtype and dtype not in DTYPES:
        raise InputError(f"dtype = {dtype!r}; accepted: {' or '.join(DTYPES)}")
    mirror.refresh(name)
    config = read_export_config(name)
    if config is None and is_published(name):
        vae = _load_published(name)
        if step is not None:
            raise InputError(f"{name}: a published VAE, without step {step}; accepted: no step")
    elif config is None:
        vae = _load_run(name, step)
    elif pathlib.Path(mirror.local(name)).resolve().name.endswith(UNFINISHED):
        raise InputError(f"{name}: an unfinished export; accepted: {ACCEPTED}")
    else:
        vae = load_export(name, config)
        if step is not None and step != vae.step:
            raise InputError(
                f"{name}: an export of step {vae.step}, not {step}; accepted: step {vae.step}, or no step"
            )
    if dtype:
        vae = vae._replace(architecture=vae.architecture.replace(dtype=dtype))
    return vae


def flatten(params: Params) -> dict[str, Any]:
    """Flattens a tree of parameters to {'encoder.conv_in.kernel': array, ...}, in alphabetical order."""
    return dict(sorted(traverse_util.flatten_dict(params, sep=".").items()))


def fingerprint(params: Params) -> str:
    """Returns a hash of the names, shapes and float32 values of parameters, as 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for name, leaf in flatten(params).items():
        leaf = np.ascontiguousarray(leaf, np.float32)
        digest.update(f"{name} {leaf.shape}".encode())
        digest.update(leaf.data)
    return digest.hexdigest()


def _load_published(name: str) -> TrainedVAE:
    architecture, params, latents = read_published(name)
    return TrainedVAE(name, architecture, params, latents["mean"], latents["std"], 0, fingerprint(params))


def _load_run(name: str, step: int | None) -> TrainedVAE:
    run = RunFolder(name)
    folder = run.path
    step = run.step if step is None else step
    config = _read_config(run)
    try:
        architecture = run_architecture(run, config)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_an_autoencoder(name, error) from error
    checkpoints = SavedCheckpoints(folder)

    def read(newest: int | None) -> TrainedVAE:
        chosen = _completed_step(name, checkpoints, newest if step is None else step)
        shapes = _checked_shapes(name, architecture)
        params, log_scale = _restore_average(name, checkpoints.folder(chosen), shapes, config.optim.train)
        statistics = latent_statistics.load(folder, chosen) or {}
        mean, std = (_per_channel(statistics.get(key)) for key in ("mean", "std"))
        return TrainedVAE(name, architecture, params, mean, std, chosen, fingerprint(params), log_scale)

    if step is not None:
        return read(step)
    return checkpoints.newest_whole(read, on_all_hosts=False)


def _read_config(run: RunFolder) -> Config:
    """The configuration of a run; raises an InputError that also names the alternatives to a run."""
    if not (run.path / CONFIG).is_file():
        raise InputError(f"{run.name}/{CONFIG}: no such file; accepted: {ACCEPTED}")
    try:
        return run.read_config()
    except InputError:
        if kind := _config_of_export(str(run.path)).get("format"):
            raise InputError(f"{run.name}: an export of format {kind!r}; accepted: {ACCEPTED}") from None
        raise


def run_architecture(run: RunFolder, config: Config) -> Architecture:
    """The architecture of a run's autoencoder.

    Raises:
      InputError: if the model that the run started from is needed and missing.
    """
    known = read_export_config(str(run.init))
    if known is None and (config.teacher or not config.model.family):
        raise InputError(f"{run.init}: not the model that the run started from; accepted: {ACCEPTED}")
    start = families.from_json(known["architecture"], ModelConfig()) if known else None
    return families.architecture_of_run(config, start)


def is_run(name: str) -> bool:
    """Whether a path should be read as a run: it is neither an export nor a published VAE."""
    return read_export_config(name) is None and not is_published(name)


def read_export_config(name: str) -> dict[str, Any] | None:
    """Reads config.json of an export; None for a run, or if there is no readable config.json."""
    config = _config_of_export(name)
    return config if config.get("format") == FORMAT else None


def _config_of_export(name: str) -> dict[str, Any]:
    """Reads config.json of an export of any format; {} if there is no readable one."""
    try:
        config = json.loads((pathlib.Path(mirror.local(name)) / CONFIG).read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def pixel_channels(name: str) -> int:
    """The number of pixel channels of a run, an export or a published VAE.

    Raises:
      InputError: if there is no readable config.json.
    """
    config = read_export_config(name)
    if config is None and is_published(name):
        return read_published(name)[0].pixel_channels
    if config is None:
        return _read_config(RunFolder(name)).model.pixel_channels
    try:
        return families.from_json(config["architecture"], ModelConfig()).pixel_channels
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged_export(name, error) from error


def load_export(name: str, config: Mapping[str, Any]) -> TrainedVAE:
    """Reads an export, finished or not.

    Args:
      name: folder of the export.
      config: contents of its config.json.

    Raises:
      InputError: if the export is damaged.
    """
    path = pathlib.Path(mirror.local(name)) / WEIGHTS
    try:
        architecture = families.from_json(config["architecture"], ModelConfig())
        step, model = int(config["step"]), str(config["fingerprint"])
        stored = config["weights"]["fingerprint"]
        mean, std = (_per_channel(config["latents"][key]) for key in ("mean", "std"))
        shapes = _checked_shapes(name, architecture)
        params = traverse_util.unflatten_dict(load_file(path), sep=".")
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise _damaged_export(name, error) from error
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    _check_shapes(name, shapes, params)
    if fingerprint(params) != stored:
        raise InputError(f"{path}: not the weights that config.json describes; accepted: {ACCEPTED}")
    return TrainedVAE(name, architecture, params, mean, std, step, model, config.get("log_scale"))


def _damaged_export(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: damaged export ({one_line(error)}); accepted: {ACCEPTED}")


def _per_channel(values: list[float] | None) -> np.ndarray | None:
    return None if values is None else np.asarray(values, np.float32)


def _checked_shapes(name: str, architecture: Architecture) -> Params:
    try:
        return parameter_shapes(architecture)
    except (TypeError, ValueError) as error:
        raise _not_an_autoencoder(name, error) from error


def _not_an_autoencoder(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name}: config.json does not describe an autoencoder ({one_line(error)}); accepted: {ACCEPTED}"
    )


def _completed_step(name: str, checkpoints: SavedCheckpoints, step: int | None) -> int:
    """Returns `step`; raises InputError unless it has a checkpoint that is completely written."""
    steps = checkpoints.steps()
    if step is None or not steps:
        raise InputError(f"{name}: no completed checkpoint; accepted: a run that has saved a checkpoint")
    if step not in steps:
        raise InputError(
            f"{name}: no completed checkpoint of step {step}; accepted: {', '.join(map(str, steps))}"
        )
    return step


def _restore_average(
    name: str, checkpoint: pathlib.Path, shapes: Params, trained: Sequence[str]
) -> tuple[Params, float]:
    """Reads the averaged (EMA) parameters as arrays on this host, whatever mesh saved them.

    Args:
      name: name of the run, for messages.
      checkpoint: folder of the checkpoint.
      shapes: shapes of the parameters.
      trained: the halves of the autoencoder that train; the item 'frozen' holds the other half.

    Returns:
      The parameters, and the log-scale of the likelihood.

    Raises:
      DamagedCheckpoint: if the checkpoint is damaged.
      InputError: if the checkpoint cannot be read, or has other shapes.
    """
    averages = {half: shapes[half] for half in trained}
    likelihood = {"log_scale": jax.ShapeDtypeStruct((), jnp.float32)}
    state = {"ema": {"autoencoder": averages, "likelihood": likelihood}}
    arrays = _restore(name, checkpoint, "state", state)["ema"]
    params = arrays["autoencoder"]
    if frozen := {half: tree for half, tree in shapes.items() if half not in trained}:
        params |= _restore(name, checkpoint, "frozen", frozen)
    return params, float(arrays["likelihood"]["log_scale"])


def _restore(name: str, checkpoint: pathlib.Path, item: str, tree: Params) -> Params:
    """Reads some arrays of an item of a checkpoint; see `_restore_average`."""
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    try:
        contents = wholeness.read_contents(checkpoint)
        with wholeness.reading(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            arrays = checkpointer.restore(
                checkpoint / item,
                args=ocp.args.PyTreeRestore(item=tree, restore_args=arguments, partial_restore=True),
            )
    except DamagedCheckpoint:
        raise
    except Exception as error:  # Orbax raises bare Exceptions
        wholeness.verify(checkpoint)
        raise InputError(
            f"{name}: {checkpoint} cannot be read: {one_line(error)}; accepted: an undamaged checkpoint"
        ) from error
    _check_shapes(name, tree, arrays)
    wholeness.check_arrays(checkpoint, contents, item, wholeness.of_arrays(arrays))
    return arrays


def _check_shapes(name: str, expected: Params, found: Params) -> None:
    """Raises InputError, naming the first parameter, if two trees differ in names or shapes."""
    for parameter, shape, other in _differences(expected, found):
        problem = "is missing" if other is None else f"has shape {other}"
        accepted = "no such parameter" if shape is None else f"shape {shape}"
        raise InputError(f"{name}: {parameter} {problem}; accepted: {accepted}, as config.json describes")


def _differences(expected: Params, found: Params) -> Iterator[tuple[str, Any, Any]]:
    """Yields (name, expected shape, found shape) of every parameter that differs; None if it is missing."""
    shapes, others = ({k: v.shape for k, v in flatten(tree).items()} for tree in (expected, found))
    for parameter in sorted(shapes | others):
        if shapes.get(parameter) != others.get(parameter):
            yield parameter, shapes.get(parameter), others.get(parameter)
