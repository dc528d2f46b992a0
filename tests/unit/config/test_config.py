import os
import pathlib
import subprocess
import sys

import pytest

from vaejax.config import check as config_check
from vaejax.config import schema as config
from vaejax.configs import demo
from vaejax.errors import InputError
from vaejax.models.autoencoder import Architecture

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["demo", "joint", "joint.py:tiny", "joint.py:large", "image", "video"])
def test_the_shipped_configurations_are_accepted(name):
    file, _, arg = name.partition(".py:")
    namespace: dict = {}
    exec((ROOT / "vaejax/configs" / f"{file}.py").read_text(), namespace)
    shipped = namespace["get_config"](arg)
    config_check.check(shipped)
    assert Architecture.of(shipped.model).widths


def test_a_size_fills_only_what_is_left_empty():
    settings = config.defaults()
    settings.model.size = "large"
    settings.model.encoder_blocks = 1
    architecture = Architecture.of(settings.model)
    assert (architecture.widths, architecture.encoder_blocks) == ((192, 384, 768), 1)


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("loss.normalization", "median", ["loss.normalization = 'median'", "'sum', 'mean', 'reference'"]),
        ("model.size", "huge", ["model.size = 'huge'", "'tiny'"]),
        ("model.temporal_factor", 3, ["model.temporal_factor = 3", "1, 2, 4, 8"]),
        ("model.latent_channels", 500, ["model.latent_channels = 500", "at most 192"]),
        ("optim.learning_rate", -1.0, ["optim.learning_rate = -1.0", "above 0"]),
        ("ema.decay", 1.0, ["ema.decay = 1.0", "below 1"]),
        ("steps", 0, ["steps = 0", "from 1"]),
        ("loss.weights.kl", float("nan"), ["loss.weights.kl = nan", "finite"]),
        ("loss.wieghts", {}, ["loss.wieghts", "loss.weights"]),
        ("loss.weights.perceptul", 1.0, ["loss.weights.perceptul"]),
    ],
)
def test_a_value_that_will_not_do_is_named_with_what_is_accepted(key, value, parts):
    settings = config.defaults()
    with settings.unlocked():
        section, _, name = key.rpartition(".")
        (config.get(settings, section) if section else settings)[name] = value
    with pytest.raises(InputError) as error:
        config_check.check(settings)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_a_discriminator_cannot_warm_up_for_longer_than_there_is_time():
    settings = config.defaults()
    settings.loss.adversarial.update({"start": 5, "warmup": 6})
    config_check.check(settings)  # without the term it does not matter
    settings.loss.weights.adversarial = 0.1
    with pytest.raises(InputError, match=r"loss\.adversarial\.warmup = 6; accepted: at most .*start = 5"):
        config_check.check(settings)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"checkpoint.best": "mean/psrn"},
            r"checkpoint\.best = 'mean/psrn'; .* BUCKET one of mean, image_64x64",
        ),
        ({"checkpoint.best": "-image_64x64/probe_kernel"}, r"with probe\.every, BUCKET/probe_kernel"),
        (
            {"checkpoint.best": "-mean/probe_kernel", "probe.every": 300},
            r"or image_64x64/probe_kernel, image_64x64/probe_frechet",
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
            r"NAME one of psnr, .*, kl, spots where",
        ),
        ({"checkpoint.best": "-image_64x64/flicker"}, r"checkpoint\.best = '-image_64x64/flicker'"),
        (
            {"probe.bucket": "image_1x1"},
            r"probe\.bucket = 'image_1x1'; accepted: '' or one of image_64x64, video",
        ),
    ],
)
def test_the_best_checkpoint_follows_a_number_that_checkpoints_have(changes, told):
    settings = demo.get_config()
    settings.data.buckets = changes.pop("data.buckets", settings.data.buckets)
    settings.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=told):
        config_check.check(settings)


@pytest.mark.parametrize("best", ["mean/psnr", "-mean/flicker", "-video_9x64x64/probe_kernel"])
def test_any_evaluated_number_may_be_followed(best):
    settings = demo.get_config()
    settings.update_from_flattened_dict(
        {"checkpoint.best": best, "probe.every": 600, "probe.bucket": "video_9x64x64"}
    )
    config_check.check(settings)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--config=configs/demo.py", "--config.optim.acg=1"], ["optim.acg", "optim.agc"]),
        (
            ["--config=configs/demo.py", "--config.data.sources.mine.path=/x"],
            ["data.sources.mine.path", "--config.data.sources='{...}'"],
        ),
        (["--config=configs/demo.py", "--config.steps=many"], ["steps = many", "accepted: "]),
        (["--config=configs/joint.py:tinny"], [":tinny", ":tiny", ":large"]),
        (["--config=configs/none.py"], ["--config=configs/none.py: no such file; accepted: "]),
        ([], ["--config", "--workdir"]),
        (["--config=configs/demo.py", "--config.data.media=/nowhere"], ["data.media", "/nowhere"]),
        (
            ["--config=configs/demo.py", "--config.data.buckets.image_64x64.batch=7", "--config.mesh.data=2"],
            ["mesh", "data 2", "1"],
        ),
    ],
    ids=[
        "unknown key",
        "unknown entry",
        "wrong type",
        "no variant",
        "no file",
        "no config",
        "no folder",
        "mesh",
    ],
)
def test_the_command_line_tells_a_mistake_in_one_line_and_exits_2(tmp_path, flags, parts):
    command = [sys.executable, "-m", "vaejax.main", f"--workdir={tmp_path}/run", *flags]
    if not flags:
        command.pop()
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
