"""Exports a trained VAE: weights, configuration, model card and StableHLO, verified against its source."""

import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import orbax.checkpoint as ocp
from tqdm import tqdm

from vaejax import cli, files
from vaejax.codec.codec import Codec
from vaejax.codec.load import CONFIG, DTYPES, TrainedVAE, load_export, load_vae
from vaejax.codec.save import rounded, save_vae
from vaejax.errors import InputError
from vaejax.export import model_card, stablehlo, verify
from vaejax.export.folder import CARD, CHECKPOINT, Exported, check_replaceable
from vaejax.export.source import Source, read_source
from vaejax.files import atomic_folder, expand_home


def export(
    name: str,
    out: str,
    *,
    step: int | None = None,
    dtype: str = "float32",
    shapes: Sequence[str] = (),
    scores: str = "",
) -> Exported:
    """Exports a trained VAE, reads the export again and compares it with its source.

    Args:
      name: a run, its checkpoints/STEP, or an export.
      out: the output folder: a new or empty one, or an earlier export, which is replaced.
      step: step of a completed checkpoint; default: the one in `name`, else the latest.
      dtype: dtype of the weights, 'float32' or 'bfloat16'.
      shapes: shapes of StableHLO programs, 'TxHxW' each.
      scores: results.json of vaejax.evaluate. '' takes the scores of the source: RUN/results.json if it has
        scores of this step, or those that an export records.

    Raises:
      InputError: if an input cannot be read, or `out` cannot be written.
      TrainingFailed: if the export differs from its source; the export is then deleted.
    """
    begin = time.monotonic()
    if dtype not in DTYPES:
        raise InputError(f"--dtype={dtype}; accepted: {' or '.join(DTYPES)}")
    folder = pathlib.Path(expand_home(out)).resolve()
    check_replaceable(folder, out, name)
    vae = load_vae(name, step)
    parsed = stablehlo.parse_shapes(shapes, vae.architecture)
    source = read_source(name, vae, scores)
    with (
        cli.writing(out, "OUT"),
        tqdm(total=2 + 2 * len(parsed), file=sys.stderr, leave=False) as progress,
        atomic_folder(folder) as unfinished,
    ):
        progress.set_description("weights")
        config = _write(unfinished, source, dtype, parsed, progress)
        exported = load_export(str(unfinished), files.read_json(unfinished / CONFIG))
        config["rounding"] = _verify(unfinished, source.vae, exported, config, progress)
        (unfinished / CARD).write_text(model_card.text(folder.name, config), encoding="utf-8")
        size = sum(path.stat().st_size for path in unfinished.rglob("*") if path.is_file())
    return Exported(out, config, size, time.monotonic() - begin)


def _write(
    folder: pathlib.Path, source: Source, dtype: str, shapes: Sequence[stablehlo.Shape], progress: tqdm
) -> dict[str, Any]:
    """Writes everything but the model card; returns the contents of config.json."""
    vae = source.vae
    params = rounded(vae.params, dtype)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / CHECKPOINT, params)
    stored = vae._replace(params=rounded(params, "float32"))
    programs = []
    for shape in shapes:
        progress.update()
        progress.set_description(f"StableHLO {stablehlo.shape_name(shape)}")
        programs.append(stablehlo.write(folder, stored, shape))
    further = {"latents": source.latents, "training": source.training, "scores": source.scores}
    return save_vae(folder, vae, dtype, further | {"stablehlo": programs})


def _verify(
    folder: pathlib.Path, source: TrainedVAE, exported: TrainedVAE, config: dict[str, Any], progress: tqdm
) -> dict[str, float]:
    """Compares the export's weights and codec with the source, and its StableHLO programs with its codec.

    Returns the result of `verify.check_codec`.
    """
    progress.update()
    progress.set_description("verifying")
    dtype, codec = config["weights"]["dtype"], Codec(exported)
    verify.check_weights(source, exported, folder / CHECKPOINT, dtype)
    rounding = verify.check_codec(Codec(source), codec, dtype)
    for programs in config["stablehlo"]:
        progress.update()
        progress.set_description(f"verifying StableHLO {stablehlo.shape_name(programs['shape'])}")
        encode, decode = (stablehlo.read(folder / programs[kind]["file"]) for kind in ("encode", "decode"))
        verify.check_programs(codec, encode, decode, programs)
    progress.update()
    return rounding
