"""A run skips and counts non-finite updates, rolls back, and continues with other samples."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from tests.support import losses, media_files
from tests.support.faults import Fault, injecting
from tests.support.models import SMALL, architecture
from vaejax.config import check
from vaejax.configs import demo
from vaejax.data import pipeline
from vaejax.data.bucket import buckets_of
from vaejax.data.sampler import Sampler
from vaejax.data.sources import open_sources
from vaejax.errors import InputError, TrainingFailed
from vaejax.models.autoencoder import Autoencoder
from vaejax.rundir.checkpoint import Checkpoints
from vaejax.runtime.mesh import make_mesh
from vaejax.train import loop as train
from vaejax.train import state as train_state
from vaejax.train.guard import StepGuard


def settings(media, adversarial=False, **more):
    config = demo.get_config("tiny")
    config.data.media = str(media)
    config.data.buckets = {"image_32x32": {"batch": 8}}
    config.loss.weights.perceptual = 0.0
    config.loss.weights.adversarial = 0.05 if adversarial else 0.0
    config.loss.adversarial.start = config.loss.adversarial.warmup = 0
    config.loss.adversarial.discriminators = ("image",)
    config.loss.adversarial.width = 4
    config.model.widths = (8, 8, 8)
    config.eval.linear_samples = config.eval.latent_samples = 0
    config.data.holdout = 0.0  # no evaluation
    config.steps = 12
    config.checkpoint.every = 4
    config.eval.every = config.panels.every = 100
    config.recovery.bad_steps = 3
    config.recovery.rollbacks = 2
    config.update_from_flattened_dict(more)
    return config


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    media_files.write_photos(folder, 40)
    return folder


def lines(workdir):
    return [json.loads(line) for line in (workdir / "bad_steps.jsonl").read_text().splitlines()]


def logged(workdir, name):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {m["step"]: m[name] for m in found if m["split"] == "train" and name in m}


def position(workdir, step):
    return json.loads((workdir / "checkpoints" / str(step) / "data" / "metadata").read_text())["samples"]


def leaves(workdir, step, item):
    return ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / item).absolute())


@pytest.mark.runs
def test_one_bad_update_is_skipped_counted_and_named(media, tmp_path):
    fault = Fault("generator", "image_32x32", lambda step, x: step == 5)
    assert train.fit(settings(media), str(tmp_path), inject=injecting(fault))
    (line,) = lines(tmp_path)
    assert line["step"] == 5 and len(line["samples"]["image_32x32"]) == 8
    assert all(name.split("@")[0].endswith(".png") for name in line["samples"]["image_32x32"])
    assert logged(tmp_path, "bad_steps") == {s: int(s > 5) for s in range(1, 13)}
    assert np.isfinite(logged(tmp_path, "grad_norm")[7])


@pytest.mark.runs
def test_consecutive_bad_updates_roll_back_and_continue_past_their_samples(media, tmp_path):
    """Bad samples cause the fault, those that steps 5 to 7 draw before the rollback."""
    clean = tmp_path / "clean"
    seen = {}

    def collect(step, x):
        jax.debug.callback(lambda s, m: seen.setdefault(int(s), float(m)), step, x.mean())
        return jnp.zeros((), bool)

    assert train.fit(settings(media), str(clean), inject=injecting(Fault("data", "image_32x32", collect)))
    bad = jnp.array([seen[step] for step in (5, 6, 7)])
    fault = Fault("data", "image_32x32", lambda step, x: (jnp.abs(x.mean() - bad) < 1e-7).any())
    run = tmp_path / "run"
    assert train.fit(settings(media), str(run), inject=injecting(fault))
    *skipped, back = lines(run)
    assert [line["step"] for line in skipped] == [5, 6, 7]
    assert (back["step"], back["back_to"], back["positions"]["samples"]) == (8, 4, {"image_32x32": 8 * 8})
    assert position(run, 12) == {"image_32x32": 16 * 8}  # 12 steps, and 4 updates that were rolled back
    assert sorted(logged(run, "loss")) == list(range(1, 13))  # no step is counted twice
    assert logged(run, "bad_steps")[12] == 3
    assert np.isfinite(list(logged(run, "loss").values())).all()


@pytest.mark.runs
def test_a_rollback_compiles_nothing(media, tmp_path, monkeypatch):
    """Updates from step 5 on fail: the run rolls back from 8 to 4, evaluates at 8 again and gives up."""
    compiled, before = [], []
    roll_back = StepGuard.roll_back

    def noting(*arguments):
        roll_back(*arguments)
        before.append(len(compiled))

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    fault = Fault("generator", "image_32x32", lambda step, x: step >= 5)
    more = {"recovery.rollbacks": 1, "data.holdout": 0.2, "eval.every": 4, "eval.samples": 8}
    monkeypatch.setattr(StepGuard, "roll_back", noting)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with pytest.raises(TrainingFailed, match="after 1 rollbacks"):
            train.fit(settings(media, **more), str(tmp_path), inject=injecting(fault))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert [line["step"] for line in lines(tmp_path)] == [5, 6, 7, 8, 5, 6, 7]
    assert len(before) == 1 and before[0] > 3
    assert len(compiled) == before[0]


@pytest.mark.runs
def test_a_run_resumed_with_another_batch_size_continues_with_the_next_sample(media, tmp_path, monkeypatch):
    """Three updates with batches of 8, two with 16 and one with 8."""
    drawn, following = [], pipeline.TrainStream.__next__

    def noting(stream):
        update = following(stream)
        drawn.extend(update.batches["image_32x32"].names)
        return update

    monkeypatch.setattr(pipeline.TrainStream, "__next__", noting)
    for steps, batch in ((3, 8), (5, 16), (6, 8)):
        config = settings(media, steps=steps, **{"data.buckets.image_32x32.batch": batch, "data.workers": 0})
        assert train.fit(config, str(tmp_path))
        assert position(tmp_path, steps) == {"image_32x32": len(drawn)}
    data = check(config).data
    (bucket,) = buckets_of(check(config))
    sampler = Sampler(open_sources(data), bucket, "train", data, config.seed)
    assert drawn == [sampler[i].name for i in range(3 * 8 + 2 * 16 + 8)]


@pytest.mark.runs
def test_a_run_that_rollbacks_do_not_help_ends_with_a_clear_error_and_its_counts(media, tmp_path):
    config = settings(media, adversarial=True)
    fault = Fault("discriminator", "image_32x32", lambda step, x: step >= 5)
    with pytest.raises(
        TrainingFailed, match=r"3 consecutive updates are not finite after 2 rollbacks .* to step 4"
    ) as error:
        train.fit(config, str(tmp_path), inject=injecting(fault))
    assert "\n" not in str(error.value)
    found = lines(tmp_path)
    assert sum("back_to" in line for line in found) == 2 and len(found) == 2 + 9
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4"]
    # The same command without the fault continues past the samples of the last rollback.
    assert train.fit(config, str(tmp_path))
    assert position(tmp_path, 12) == {"image_32x32": found[-4]["positions"]["samples"]["image_32x32"] + 8 * 8}
    assert (
        logged(tmp_path, "bad_steps")[12] == 6
    )  # of nine, the three after the last rollback were repeated, and finite


@pytest.mark.runs
def test_a_signal_during_bad_updates_does_not_save_their_state(media, tmp_path):
    def strikes(step, x):
        jax.debug.callback(lambda s: os.kill(os.getpid(), signal.SIGTERM) if s == 6 else None, step)
        return step >= 5

    fault = Fault("generator", "image_32x32", strikes)
    more = {"recovery.bad_steps": 10}
    assert not train.fit(settings(media, **more), str(tmp_path), inject=injecting(fault))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert train.fit(settings(media, **more), str(tmp_path))
    assert position(tmp_path, 12) == {"image_32x32": 12 * 8} and logged(tmp_path, "bad_steps")[12] == 0


@pytest.mark.runs
def test_a_run_whose_newest_checkpoint_is_damaged_repeats_the_updates_since_the_one_before(
    media, tmp_path, capfd
):
    """The run was complete, and its last checkpoint has its size but not all of its bits."""
    assert train.fit(settings(media), str(tmp_path))
    expected, newest = leaves(tmp_path, 12, "state"), tmp_path / "checkpoints" / "12"
    arrays = max((newest / "state").glob("**/d/*"), key=lambda path: path.stat().st_size)
    arrays.write_bytes(bytes(len(arrays.read_bytes())))
    capfd.readouterr()
    assert train.fit(settings(media), str(tmp_path))
    damaged = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
    assert len(damaged) == 1 and damaged[0].endswith(f"; moved to {tmp_path}/damaged/12")
    jax.tree.map(np.testing.assert_array_equal, leaves(tmp_path, 12, "state"), expected)
    assert sorted(logged(tmp_path, "loss")) == list(range(1, 13))


@pytest.mark.runs
def test_discriminators_can_join_a_run_and_are_saved_with_it(media, tmp_path):
    assert train.fit(settings(media, steps=4), str(tmp_path))
    assert not list((tmp_path / "checkpoints" / "4").glob("discriminator_*"))
    assert train.fit(settings(media, adversarial=True), str(tmp_path))
    saved = leaves(tmp_path, 12, "discriminator_image")
    assert set(saved) == {"params", "spectral", "optimizer", "real_mean", "fake_mean", "accuracy"}
    assert saved["accuracy"] != 0.5 and saved["real_mean"] != 0


@pytest.mark.runs
def test_a_run_can_start_from_the_ema_of_another(media, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train.fit(settings(media, steps=4), str(one))
    before = leaves(one, 4, "state")["ema"]["autoencoder"]["encoder"]["conv_in"]["kernel"]
    still = {"init": str(one), "steps": 1, "optim.learning_rate": 1e-9, "optim.warmup": 0}
    assert train.fit(settings(media, **still), str(two))
    after = leaves(two, 1, "state")["params"]["autoencoder"]["encoder"]["conv_in"]["kernel"]
    np.testing.assert_allclose(after, before, atol=1e-7)
    with pytest.raises(InputError, match=r"^init = .*nowhere/config.json: no such file"):
        train.fit(settings(media, init=str(tmp_path / "nowhere")), str(tmp_path / "three"))


@pytest.mark.runs
def test_a_discriminator_may_join_another(tmp_path):
    """A run of images is resumed with clips: its checkpoint has one discriminator, the run now two."""
    mesh = make_mesh(ConfigDict({"data": 8, "fsdp": 1, "space": 1}))
    model, optimizer = Autoencoder(architecture(**SMALL)), optax.adam(1e-3)

    def state(names, seed):
        return train_state.create(model, optimizer, losses.adversary(names, width=4), mesh, seed)

    before, both = state(["image"], 0), state(["image", "video"], 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, train_state.to_items(before), {}, {}, {})
        items, _ = checkpoints.restore(1, train_state.to_items(both))
    after = train_state.from_items(both, items)
    for found, expected in (("image", before), ("video", both)):
        jax.tree.map(
            np.testing.assert_array_equal, after.discriminators[found], expected.discriminators[found]
        )
