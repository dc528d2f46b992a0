"""Turns a ConfigDict or saved JSON into the frozen `Config`, and checks every key and value."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from vaejax.config.loss_schema import SMALLEST_LPIPS
from vaejax.config.schema import OPEN_SECTIONS, Config, defaults, is_section
from vaejax.errors import InputError

# Names of the scores that checkpoint.best accepts, from evaluation and from the diffusion probe.
EVAL_SCORES = (
    "psnr",
    "psnr_raw",
    "psnr_rgb",
    "psnr_alpha",
    "ssim",
    "nll",
    "kl",
    "spots",
    "flicker",
    "lpips_alexnet",
    "lpips_vgg16",
)
PROBE_SCORES = ("probe_kernel", "probe_frechet", "probe_loss", "probe_explained")
LPIPS_NETWORKS = ("alexnet", "vgg16")

Section = TypeVar("Section")


def check(config: Mapping[str, Any]) -> Config:
    """Returns the frozen, typed configuration after checking every key and value.

    Other modules check more: data/bucket.py the buckets, runtime/mesh.py the number of devices and
    models/autoencoder.py the architecture.

    Args:
      config: a ConfigDict or nested dictionaries with the keys of `Config`.

    Raises:
      InputError: if a key is unknown or missing, or its value is not accepted; the message names the key.
    """
    checked = _build(Config, config, "")
    game = checked.loss.adversarial
    if checked.loss.weights.adversarial and game.warmup > game.start:
        raise InputError(
            f"loss.adversarial.warmup = {game.warmup}; accepted: at most loss.adversarial.start ="
            f" {game.start}, because the warm-up ends there"
        )
    _check_start(checked)
    buckets = [name for name, fields in checked.data.buckets.items() if _batch(fields)]
    if checked.probe.bucket and checked.probe.bucket not in buckets:
        raise InputError(
            f"probe.bucket = {checked.probe.bucket!r}; accepted: '' or one of {', '.join(buckets)}"
        )
    _check_best(checked, buckets)
    return checked


def from_saved(saved: Mapping[str, Any]) -> Config:
    """Returns the configuration that a run saved as JSON, with any version of vaejax.

    Keys that no longer exist are dropped. Missing keys take their defaults. Values are not checked, because
    the run was trained with them.

    Raises:
      TypeError, AttributeError: if `saved` is not a configuration.
    """
    return _restore(Config, saved, "")


def unknown_key(key: str) -> str:
    """The error message for a key that does not exist; it names all keys of the key's section.

    If there is no such section either, it names similar keys, or else the top-level ones.
    """
    for section, example in OPEN_SECTIONS.items():
        if key.startswith(section + "."):
            entry = key.removeprefix(section + ".").split(".")[0]
            return (
                f"{key}: no such entry in the configuration; accepted: an existing entry; or, to add one,"
                f" the whole section with all entries: --config.{section}='{{..., \"{entry}\": {example}}}'"
            )
    known = list(keys(Config))
    section, _, _ = key.rpartition(".")
    accepted = [name for name in known if section and name.rpartition(".")[0] == section]
    accepted = accepted or difflib.get_close_matches(key, known, n=3, cutoff=0.5) or sorted(defaults())
    return f"{key}: no such configuration key; accepted: {', '.join(accepted)}"


def keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Every key of a section class and its subsections, with dots, such as 'optim.learning_rate'."""
    for field in dataclasses.fields(kind):
        yield prefix + field.name
        if is_section(field):
            yield from keys(_kind(field), f"{prefix}{field.name}.")


def get(config: Any, key: str) -> Any:
    """The value of a dotted key, such as 'optim.learning_rate', in a ConfigDict or Config."""
    for name in key.split("."):
        config = config[name] if isinstance(config, Mapping) else getattr(config, name)
    return config


def _kind(field: dataclasses.Field) -> type:
    """The class of the section that a field holds, which is the default factory of the field."""
    assert isinstance(field.default_factory, type)
    return field.default_factory


def _build(kind: type[Section], values: Mapping[str, Any], prefix: str) -> Section:
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise InputError(unknown_key(prefix + name))
    built = {}
    for name, field in fields.items():
        key = prefix + name
        if name not in values:
            raise InputError(f"{key}: missing; accepted: a configuration made from vaejax.config.defaults()")
        value = values[name]
        if is_section(field):
            if not hasattr(value, "items"):
                names = ", ".join(f.name for f in dataclasses.fields(_kind(field)))
                raise InputError(f"{key} = {value!r}; accepted: a section with the keys {names}")
            built[name] = _build(_kind(field), value, key + ".")
        else:
            built[name] = _accepted(key, _plain(value), field.metadata["accepts"])
    return kind(**built)


def _accepted(key: str, value: Any, accepts: Any) -> Any:
    try:
        good = accepts.test(value)
    except TypeError:
        good = False
    if not good:
        raise InputError(f"{key} = {value!r}; accepted: {accepts.text}")
    return value


def _restore(kind: type[Section], saved: Mapping[str, Any], prefix: str) -> Section:
    built = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if is_section(field):
            built[field.name] = _restore(_kind(field), saved.get(field.name, {}), f"{prefix}{field.name}.")
        elif field.name in saved:
            built[field.name] = _plain(saved[field.name])
    return kind(**built)


def _plain(value: Any) -> Any:
    """Turns ConfigDicts into dictionaries, and lists into tuples, because JSON stores tuples as lists."""
    if hasattr(value, "items"):
        return {name: _plain(one) for name, one in value.items()}
    return tuple(_plain(one) for one in value) if isinstance(value, list | tuple) else value


def _batch(fields: Any) -> int:
    return fields.get("batch", 0) if isinstance(fields, Mapping) else 0


def _check_start(config: Config) -> None:
    """Raises an InputError if a setting needs the model of `init` or `teacher` and there is none."""
    weights, halves = config.loss.weights, config.optim.train
    if config.teacher and config.init:
        raise InputError(f"teacher = {config.teacher!r} with init = {config.init!r}; accepted: one of them")
    if config.teacher and len(halves) != 1:
        raise InputError(
            f"optim.train = {halves} with a teacher; accepted: ('decoder',) or ('encoder',), the half that"
            " learns from the teacher"
        )
    known = config.init or config.teacher
    needs = {
        f"optim.train = {halves}": len(halves) == 1,
        f"loss.weights.anchor = {weights.anchor}": weights.anchor,
        f"eval.max_drift = {config.eval.max_drift}": config.eval.max_drift,
    }
    for setting, used in needs.items():
        if used and not known:
            raise InputError(f"{setting} without a model to start from; accepted: with init or teacher")
    if not config.model.family and not config.init:
        raise InputError("model.family = '' without init; accepted: vaejax, or '' with init")
    if weights.anchor and "encoder" not in halves:
        raise InputError(
            f"loss.weights.anchor = {weights.anchor} with optim.train = {halves}; accepted: 0, because a"
            " frozen encoder cannot drift"
        )
    if weights.alignment and "encoder" not in halves:
        raise InputError(
            f"loss.weights.alignment = {weights.alignment} with optim.train = {halves}; accepted: 0, because"
            " only an encoder that trains can align its latents"
        )
    if weights.alignment and config.loss.alignment.network == "dinov2" and not config.loss.alignment.weights:
        raise InputError(
            "loss.alignment.weights = ''; accepted: a file of DINOv2's weights, which no package ships"
        )
    if config.data.latents and (not config.data.media or halves != ("decoder",)):
        raise InputError(
            f"data.latents = {config.data.latents!r}; accepted: with data.media and optim.train ="
            " ('decoder',), because only a frozen encoder keeps its latents"
        )
    adaptive = config.loss.adversarial.adaptive
    if adaptive and weights.adversarial and "decoder" not in halves:
        raise InputError(
            f"loss.adversarial.adaptive = {adaptive} with optim.train = {halves}; accepted: 0, because the"
            " weight is adapted to gradients of the decoder"
        )
    for name in ("teacher", "features"):
        if (weight := getattr(weights, name)) and config.student != "decoder":
            raise InputError(
                f"loss.weights.{name} = {weight}; accepted: 0, or with teacher and optim.train = ('decoder',)"
            )


def _check_best(config: Config, buckets: Sequence[str]) -> None:
    """Raises an InputError unless checkpoint.best is '' or a score that some saved checkpoints have."""
    best = config.checkpoint.best
    if not best:
        return
    scores = {bucket: _evaluated(config, bucket) for bucket in buckets}
    scores["mean"] = [name for name in EVAL_SCORES if any(name in names for names in scores.values())]
    known = [f"{bucket}/{name}" for bucket, names in scores.items() for name in names]
    probed = [f"{config.probe.bucket or buckets[0]}/{name}" for name in PROBE_SCORES if config.probe.every]
    name = best.removeprefix("-")
    if name not in known + probed:
        raise InputError(
            f"checkpoint.best = {best!r}; accepted: '' or BUCKET/SCORE, e.g. mean/psnr, with '-' in front if"
            f" lower is better; buckets: mean, {', '.join(buckets)}; scores (not all in every bucket):"
            f" {', '.join(scores['mean'])}; scores of the probe:"
            f" {', '.join(probed) or 'none, because probe.every is 0'}"
        )
    key = "probe.every" if name in probed else "eval.every"
    every, saved = get(config, key), config.checkpoint.every
    if every % saved and saved % every:
        raise InputError(
            f"{key} = {every} with checkpoint.best = {best!r}; accepted: a multiple or a divisor of"
            f" checkpoint.every = {saved}, so that checkpoints have the score"
        )


def _evaluated(config: Config, bucket: str) -> list[str]:
    """The EVAL_SCORES that evaluation computes for a bucket."""
    networks = {"alexnet"} | ({config.loss.perceptual.network} if config.loss.weights.perceptual else set())
    sizes = [int(size) for size in re.findall(r"\d+", bucket)]
    too_small = min(sizes[-2:], default=0) < SMALLEST_LPIPS
    missing = {f"lpips_{name}" for name in LPIPS_NETWORKS if name not in networks or too_small}
    missing |= set() if bucket.startswith("video_") else {"flicker"}
    missing |= set() if config.model.pixel_channels == 4 else {"psnr_rgb", "psnr_alpha"}
    return [name for name in EVAL_SCORES if name not in missing]
