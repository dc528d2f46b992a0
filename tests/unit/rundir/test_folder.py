"""The folder of a run: names, paths, and configurations of other versions."""

import json

import jax
import pytest

from vaejax.config import check, defaults
from vaejax.errors import InputError
from vaejax.rundir.folder import RunFolder


@pytest.fixture
def config():
    config = defaults()
    config.steps = 7
    config.data.buckets = {"image_32x32": {"batch": 8}}
    return check(config)


def test_a_name_is_a_run_or_one_of_its_checkpoints(tmp_path):
    run, checkpoint = RunFolder(tmp_path), RunFolder(str(tmp_path / "checkpoints" / "300"))
    assert (run.path, run.step) == (tmp_path, None)
    assert (checkpoint.path, checkpoint.step) == (tmp_path, 300)
    assert RunFolder(tmp_path / "checkpoints" / "latest").step is None
    assert RunFolder(tmp_path / "300").step is None


def test_the_files_have_the_documented_names(tmp_path):
    run = RunFolder(tmp_path)
    files = (
        run.metrics,
        run.tensorboard,
        run.parameters,
        run.bad_steps,
        run.bad_samples,
        run.profile,
        run.splits,
        run.panels,
        run.goodput,
        run.wandb,
        run.wandb_id,
    )
    names = (
        "metrics.jsonl",
        "tensorboard",
        "parameters.txt",
        "bad_steps.jsonl",
        "bad_samples.jsonl",
        "profile",
        "splits.parquet",
        "panels",
        "goodput.json",
        "wandb",
        "wandb.json",
    )
    assert files == tuple(tmp_path / name for name in names)


def test_create_makes_the_folder_and_refuses_a_url_without_one(tmp_path):
    assert RunFolder.create(str(tmp_path / "a" / "run")).path.is_dir()
    with pytest.raises(InputError, match=r"--workdir=gs://bucket; accepted: .* such as gs://bucket/RUN"):
        RunFolder.create("gs://bucket")
    with pytest.raises(InputError, match=r"ftp://host/run: unknown scheme ftp://; accepted: gs://, s3://"):
        RunFolder.create("ftp://host/run")


def test_a_configuration_is_read_as_it_was_written(tmp_path, config):
    run = RunFolder(tmp_path)
    run.write_config(config)
    assert run.read_config() == config


def test_keys_of_other_versions_are_dropped_or_take_their_defaults(tmp_path, config):
    run = RunFolder(tmp_path)
    saved = json.loads(json.dumps(config.to_dict()))
    saved["model"]["of_the_future"] = 3
    del saved["model"]["latent_channels"], saved["recovery"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    read = run.read_config()
    assert read.steps == 7 and not hasattr(read.model, "of_the_future")
    assert read.model.latent_channels == defaults().model.latent_channels
    assert read.recovery.rollbacks == defaults().recovery.rollbacks


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"model": 3}'])
def test_a_folder_without_a_run_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json: .*; accepted: the --workdir of a run"):
        RunFolder(tmp_path).read_config()


def test_only_process_0_writes_the_configuration(tmp_path, config, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    RunFolder(tmp_path).write_config(config)
    assert not list(tmp_path.iterdir())
