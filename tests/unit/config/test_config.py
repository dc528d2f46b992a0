"""The configuration: shipped files, checks, the command line, and the generated reference."""

import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from vaejax.config import check, defaults, from_saved, reference
from vaejax.config import check as check_function
from vaejax.config.check import EVAL_SCORES, LPIPS_NETWORKS, PROBE_SCORES, get, keys
from vaejax.config.flag import shipped_names
from vaejax.config.loss_schema import SMALLEST_LPIPS, WeightsConfig
from vaejax.config.schema import Config
from vaejax.configs import demo
from vaejax.errors import InputError
from vaejax.evaluate.during_training import SCORES
from vaejax.losses.adversarial import LOSSES
from vaejax.losses.objective import LIKELIHOODS, NORMALIZATIONS, TERMS
from vaejax.models.families import FAMILIES, architecture_of, architecture_of_run
from vaejax.models.vaejax import SIZES
from vaejax.models.wan import SIZES as WAN_SIZES
from vaejax.networks.lpips import NETWORKS, SMALLEST
from vaejax.probe import SCORES as PROBED
from vaejax.probe.presets import PRESETS

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["demo", "demo:tiny", "joint", "joint:large", "image", "video:tiny"])
def test_the_shipped_configurations_are_accepted(name):
    file, _, variant = name.partition(":")
    assert file in shipped_names()
    shipped = importlib.import_module(f"vaejax.configs.{file}").get_config(variant)
    assert architecture_of(check(shipped).model).encoder.widths


@pytest.mark.parametrize(("file", "start"), [("finetune", "init"), ("distill", "teacher")])
@pytest.mark.parametrize("variant", ["", "tiny"])
def test_the_shipped_configurations_that_start_from_a_model_are_accepted_with_one(file, start, variant):
    shipped = importlib.import_module(f"vaejax.configs.{file}").get_config(variant)
    with pytest.raises(InputError, match=f"without {start}|without a model"):
        check(shipped)
    shipped[start] = "PATH"
    known = architecture_of(defaults().model)
    trained = architecture_of_run(check(shipped), known).replace(remat=(), dtype="float32")
    assert trained.encoder == known.encoder
    assert (trained.decoder == known.decoder) == (file == "finetune")


def test_a_checked_configuration_is_frozen_and_survives_json():
    config = check(demo.get_config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optim.learning_rate = 1.0  # type: ignore[misc]
    assert from_saved(json.loads(json.dumps(config.to_dict()))) == config


def test_a_saved_configuration_of_another_version_keeps_what_still_exists():
    saved = check(demo.get_config()).to_dict()
    saved["optim"].pop("agc")
    saved.pop("recovery")
    saved["model"]["of_the_future"] = 1
    restored = from_saved(saved)
    assert restored.optim.agc == Config().optim.agc and restored.recovery == Config().recovery
    assert restored.data == check(demo.get_config()).data


def test_the_choices_are_those_of_the_code():
    """The schema has literals, because it imports no JAX."""
    accepted = {key: get_accepts(key) for key in keys(Config) if get_accepts(key)}
    for key, names in {
        "model.family": {"": "that of init"} | FAMILIES,
        "model.size": SIZES | WAN_SIZES,
        "loss.likelihood": LIKELIHOODS,
        "loss.normalization": NORMALIZATIONS,
        "loss.adversarial.loss": LOSSES,
        "loss.perceptual.network": NETWORKS,
        "probe.preset": PRESETS,
    }.items():
        assert all(accepted[key].test(name) for name in names), key
        assert accepted[key].text.count("'") == 2 * len(names), key
    assert [key.removeprefix("loss.weights.") for key in keys(Config) if "loss.weights." in key] == list(
        TERMS
    )
    assert set(SCORES) == set(EVAL_SCORES) and PROBED == PROBE_SCORES
    assert set(NETWORKS) == set(LPIPS_NETWORKS) and SMALLEST == SMALLEST_LPIPS


def get_accepts(key):
    kind = Config
    *sections, name = key.split(".")
    for section in sections:
        kind = type(getattr(kind(), section))
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    return field.metadata.get("accepts")


def test_the_reference_is_generated_from_the_schema(capsys):
    reference.main()
    printed = capsys.readouterr().out
    assert (ROOT / "docs" / "configuration.md").read_text() == printed, (
        "run: python -m vaejax.config.reference > docs/configuration.md"
    )


def test_a_size_fills_only_what_is_left_empty():
    settings = defaults()
    settings.model.size = "large"
    settings.model.encoder_blocks = 1
    design = architecture_of(check(settings).model).encoder
    assert (design.widths, design.encoder_blocks) == ((256, 512, 1024), 1)


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("loss.normalization", "median", ["loss.normalization = 'median'", "'sum', 'mean', 'reference'"]),
        ("model.size", "huge", ["model.size = 'huge'", "'tiny'"]),
        ("model.temporal_factor", 3, ["model.temporal_factor = 3", "1, 2, 4, 8"]),
        ("model.film", "yes", ["model.film = 'yes'", "True or False"]),
        ("optim.learning_rate", -1.0, ["optim.learning_rate = -1.0", "above 0"]),
        ("ema.decay", 1.0, ["ema.decay = 1.0", "below 1"]),
        ("steps", 0, ["steps = 0", "1 or more"]),
        ("loss.weights.kl", float("nan"), ["loss.weights.kl = nan", "finite"]),
        ("loss.wieghts", {}, ["loss.wieghts", "loss.weights"]),
        ("loss.weights.perceptul", 1.0, ["loss.weights.perceptul"]),
        ("optim", 3, ["optim = 3; accepted: a section with the keys train, learning_rate, "]),
    ],
)
def test_a_wrong_value_is_named_with_the_accepted_ones(key, value, parts):
    settings = defaults()
    with settings.unlocked(), settings.ignore_type():
        section, _, name = key.rpartition(".")
        (get(settings, section) if section else settings)[name] = value
    check_error(lambda: check(settings), parts)


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("latent_channels", 500, ["model.latent_channels = 500", "at most 192"]),
        ("remat", (0, 4), ["model.remat = (0, 4)", "levels 0 to 2"]),
    ],
)
def test_an_architecture_that_does_not_exist_is_refused(key, value, parts):
    settings = defaults()
    settings.model[key] = value
    check_error(lambda: architecture_of(check(settings).model), parts)


def check_error(work, parts):
    with pytest.raises(InputError) as error:
        work()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_a_discriminator_cannot_warm_up_for_longer_than_there_is_time():
    settings = defaults()
    settings.loss.adversarial.update({"start": 5, "warmup": 6})
    check(settings)  # without the term it does not matter
    settings.loss.weights.adversarial = 0.1
    with pytest.raises(InputError, match=r"loss\.adversarial\.warmup = 6; accepted: at most .*start = 5"):
        check(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint.best": "mean/psrn"}, r"checkpoint\.best = 'mean/psrn'; .* buckets: mean, image_64x64"),
        (
            {"checkpoint.best": "-image_64x64/probe_kernel"},
            r"of the probe: none, because probe\.every is 0",
        ),
        (
            {"checkpoint.best": "-mean/probe_kernel", "probe.every": 300},
            r"of the probe: image_64x64/probe_kernel, image_64x64/probe_frechet",
        ),
        (
            {"checkpoint.best": "-image_64x64/probe_kernel", "probe.every": 500},
            r"probe\.every = 500 .* multiple or a divisor of checkpoint\.every = 300",
        ),
        (
            {"checkpoint.best": "mean/psnr", "eval.every": 200},
            r"eval\.every = 200 .* checkpoint\.every = 300",
        ),
        (
            {"checkpoint.best": "-mean/lpips_alexnet", "data.buckets": {"image_16x16": {"batch": 1}}},
            r"scores .*: psnr, .*, kl, spots; scores of the probe",
        ),
        ({"checkpoint.best": "-image_64x64/flicker"}, r"checkpoint\.best = '-image_64x64/flicker'"),
        (
            {"probe.bucket": "image_1x1"},
            r"probe\.bucket = 'image_1x1'; accepted: '' or one of image_64x64, video",
        ),
    ],
)
def test_the_best_checkpoint_follows_a_score_that_checkpoints_have(changes, message):
    settings = demo.get_config()
    settings.data.buckets = changes.pop("data.buckets", settings.data.buckets)
    settings.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        check_function(settings)


@pytest.mark.parametrize("best", ["mean/psnr", "-mean/flicker", "-video_9x64x64/probe_kernel"])
def test_any_evaluated_score_may_be_followed(best):
    settings = demo.get_config()
    settings.update_from_flattened_dict(
        {"checkpoint.best": best, "probe.every": 600, "probe.bucket": "video_9x64x64"}
    )
    check(settings)


def test_the_score_of_alpha_may_be_followed_if_there_is_alpha():
    settings = demo.get_config()
    settings.checkpoint.best = "mean/psnr_alpha"
    with pytest.raises(InputError, match=r"^checkpoint\.best = 'mean/psnr_alpha'"):
        check(settings)
    settings.model.pixel_channels = 4
    check(settings)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        pytest.param(["--config=demo", "--config.optim.acg=1"], ["optim.acg", "optim.agc"], id="unknown key"),
        pytest.param(
            ["--config=demo", "--config.data.sources.mine.path=/x"],
            ["data.sources.mine.path", '--config.data.sources=\'{..., "mine": {'],
            id="unknown entry",
        ),
        pytest.param(
            ["--config=demo", "--config.loss.weights.lpips=1"],
            ["loss.weights.lpips: ", *(f"loss.weights.{f.name}" for f in dataclasses.fields(WeightsConfig))],
            id="unknown key of a section",
        ),
        pytest.param(
            ["--config=demo", "--config.data.buckets.video_5x64x64.batch=2"],
            ['--config.data.buckets=\'{..., "video_5x64x64": {"batch": 8}}\''],
            id="unknown bucket",
        ),
        pytest.param(
            ["--config=demo", "--config.steps=1.5e0"], ["steps = 1.5e0", "accepted: "], id="no whole"
        ),
        pytest.param(
            ["--config=configs/demo.py", "--config.steps=many"],
            ["steps = many", "accepted: "],
            id="wrong type",
        ),
        pytest.param(
            ["--config=joint:tinny"],
            ["tinny: no such variant", "large, tiny, or no variant"],
            id="no variant",
        ),
        pytest.param(
            ["--config=none"], ["--config=none: no such file; accepted: demo, distill"], id="no file"
        ),
        pytest.param([], ["--config", "--workdir"], id="no config"),
        pytest.param(
            ["--config=demo", "--config.data.media=/nowhere"], ["data.media", "/nowhere"], id="no folder"
        ),
        pytest.param(
            ["--config=demo", "--config.data.buckets.image_64x64.batch=7", "--config.mesh.data=2"],
            ["mesh", "data 2", "1"],
            id="mesh",
        ),
    ],
)
def test_the_command_line_names_a_mistake_in_one_line_and_exits_2(tmp_path, flags, parts):
    command = [sys.executable, "-m", "vaejax.main", f"--workdir={tmp_path}/run", *flags]
    if not flags:
        command.pop()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def printed_config(folder, *flags):
    command = [sys.executable, "-m", "vaejax.main", "--config=demo", *flags, "--print-config"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_print_config_prints_the_checked_configuration_and_trains_nothing(tmp_path):
    flags = ["--config.steps=1e5", "--config.optim.learning_rate=1e-4", f"--workdir={tmp_path}/run"]
    done = printed_config(tmp_path, *flags)
    assert done.returncode == 0 and not done.stderr and not list(tmp_path.iterdir())
    expected = demo.get_config()
    expected.steps, expected.optim.learning_rate = 100_000, 1e-4
    assert from_saved(json.loads(done.stdout)) == check(expected)
    wrong = printed_config(tmp_path, "--config.ema.decay=2.0")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ema.decay = 2.0; accepted: ")
