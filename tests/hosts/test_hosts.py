"""Several real processes train as one would, on the same samples, and notice dead and stalled processes."""

import json
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.support import processes
from vaejax.errors import InputError
from vaejax.runtime import distributed

pytestmark = pytest.mark.hosts

JOINT = ["--config=configs/joint.py:tiny", "--config.data.sources={'demo': {'kind': 'demo'}}"]
JOINT += ["--config.log_every=1", "--config.mesh.fsdp=2", "--config.data.workers=0"]
JOINT += ["--config.eval.linear_samples=0", "--config.eval.latent_samples=0", "--config.eval.samples=4"]
# Clips are split by height, over several hosts if each has one device.
SMALL = ["--config=configs/demo.py:tiny", "--config.log_every=1", "--config.model.widths=(8, 8, 8)"]
SMALL += ["--config.eval.linear_samples=0", "--config.eval.latent_samples=0", "--config.eval.every=1000"]
SMALL += ["--config.panels.every=1000", "--config.mesh.space=2", "--config.mesh.fsdp=2"]
SMALL += ["--config.loss.weights.perceptual=0.", "--config.data.workers=1"]


def run(count, devices, workdir, *arguments, **more):
    started = processes.start(count, devices, [f"--workdir={workdir}", *arguments], workdir, **more)
    codes = processes.finish(started)
    return codes, [process.log.read_text() for process in started]


def losses(workdir):
    """{(step, bucket): losses and norms} of metrics.jsonl, in which no line may be repeated."""
    found = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(line)
        if line["split"] == "train":
            key = line["step"], line["bucket"]
            assert key not in found, key
            found[key] = [line[name] for name in ("loss", "grad_norm", "param_norm") if name in line]
    return found


def params(workdir, step):
    """The parameters of a checkpoint as NumPy arrays, whatever devices saved them."""
    folder, reader = (workdir / "checkpoints" / str(step) / "state").absolute(), ocp.PyTreeCheckpointer()
    leaves = reader.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves)
    return reader.restore(folder, restore_args=as_numpy)["params"]


def assert_same_losses(found, expected, rtol):
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=rtol, err_msg=str(key))


def assert_same_params(folder, expected, **tolerance):
    for a, b in zip(*(jax.tree.leaves(params(f, 20)) for f in (folder, expected)), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.fixture(scope="module")
def one_process_run(tmp_path_factory):
    """A run of one process whose four devices exchange data by Gloo, as several processes do.

    Gloo adds in its own order, and a difference in the last bits would grow tenfold in each early update.
    """
    workdir = tmp_path_factory.mktemp("one")
    codes, logs = run(1, 4, workdir, *JOINT, multihost=True)
    assert codes == [0], logs[0][-2000:]
    return workdir


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_compute_the_same_as_one(count, one_process_run, tmp_path):
    """Twenty updates of the full objective, equal to the last bit."""
    codes, logs = run(count, 4 // count, tmp_path, *JOINT)
    assert codes == [0] * count, logs[0][-2000:]
    expected = losses(one_process_run)
    assert_same_losses(losses(tmp_path), expected, rtol=0)
    assert len({step for step, _ in expected}) == 20
    assert_same_params(tmp_path, one_process_run, rtol=0)
    assert all("step" not in log for log in logs[1:])  # only process 0 prints progress


def test_two_processes_of_one_device_compute_the_same_as_one_of_two(tmp_path):
    """The single process needs no Gloo, because a sum of two numbers does not depend on their order."""
    folders = tmp_path / "two", tmp_path / "one"
    for count, folder in zip((2, 1), folders, strict=True):
        codes, logs = run(count, 2 // count, folder, *JOINT)
        assert codes == [0] * count, logs[0][-2000:]
    assert_same_losses(*map(losses, folders), rtol=1e-6)
    assert_same_params(*folders, rtol=1e-6)


def noted(folder):
    """{(step, bucket): sample names in batch order} from the notes of tests/support/noting.py."""
    parts = {}
    for path in folder.glob("*.jsonl"):
        for step, bucket, rows in map(json.loads, path.read_text().splitlines()):
            parts.setdefault((step, bucket), {}).update(dict(map(tuple, rows)))
    return {key: [part[row] for row in sorted(part)] for key, part in parts.items()}


def test_a_run_continues_with_other_numbers_of_processes_and_devices(tmp_path, monkeypatch):
    """A run of two processes with two devices each is resumed by one with four, and by four with one."""

    def training(count, devices, name):
        notes = tmp_path / f"{name}-notes"
        notes.mkdir()
        monkeypatch.setenv("NOTED", str(notes))
        arguments = [*SMALL, "--config.steps=12", "--config.checkpoint.every=6", "--config.checkpoint.keep=9"]
        codes, logs = run(count, devices, tmp_path / name, *arguments, module="tests.support.noting")
        assert codes == [0] * count, logs[0][-2000:]
        return noted(notes), losses(tmp_path / name)

    samples, expected = training(2, 2, "whole")
    assert {step for step, _ in samples} == set(range(12))
    for count in (1, 4):
        name = f"on-{count}"
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "12")
        found, found_losses = training(count, 4 // count, name)
        assert found == {(step, bucket): names for (step, bucket), names in samples.items() if step >= 6}
        assert_same_losses(found_losses, expected, rtol=1e-3)


def steps_done(workdir):
    """The last step in metrics.jsonl, whose last line may be incomplete."""
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    steps = [int(found[1]) for line in lines if (found := re.match(r'{"step": (\d+)', line))]
    return max(steps, default=0)


def wait_for(condition, started, seconds=300):
    """Waits for a condition; False if a process ended first."""
    end = time.monotonic() + seconds
    while not condition():
        if any(process.popen.poll() is not None for process in started):
            return False
        assert time.monotonic() < end, started[0].log.read_text()[-2000:]
        time.sleep(0.01)
    return True


def kill(number, *started):
    for process in started:
        process.popen.send_signal(number)


def test_a_run_survives_ten_kills(tmp_path, capsys):
    """SIGKILL or SIGTERM to one or both processes, at random moments and during saves."""
    arguments = [
        *SMALL,
        "--config.steps=60",
        "--config.checkpoint.every=4",
        "--config.loss.adversarial.start=8",
    ]
    codes, logs = run(2, 2, tmp_path / "whole", *arguments)
    assert codes == [0, 0], logs[0][-2000:]
    expected = losses(tmp_path / "whole")

    rng, run_dir, summary = random.Random(5), tmp_path / "killed", []
    saving = run_dir / "checkpoints"
    for life in range(10):
        before = steps_done(run_dir)
        started = processes.start(2, 2, [f"--workdir={run_dir}", *arguments], run_dir)
        target = 5 * life + rng.randint(2, 6)
        how = ("kill one", "kill both", "kill while saving", "terminate one")[life % 4]
        assert wait_for(lambda t=target: steps_done(run_dir) >= t, started), started[0].log.read_text()[
            -2000:
        ]
        if how == "kill while saving":
            wait_for(lambda: any("tmp" in path.name for path in saving.iterdir()), started)
        else:
            time.sleep(rng.random())
        victims = started if how == "kill both" else [started[rng.randrange(2)]]
        kill(signal.SIGTERM if how == "terminate one" else signal.SIGKILL, *victims)
        codes = processes.finish(started, 120)
        if how == "terminate one":
            assert codes == [75, 75]
        else:  # the other exits by itself, or JAX aborts it if process 0 is dead
            assert codes.count(-signal.SIGKILL) == len(victims)
            assert set(codes) <= {-signal.SIGKILL, -signal.SIGABRT, 1}
        kept = sorted(int(path.name) for path in saving.iterdir() if path.name.isdecimal())
        summary.append(
            f"{how:18} from step {before:2} at {steps_done(run_dir):2}: exits {codes}, saved {kept}"
        )
    codes, logs = run(2, 2, run_dir, *arguments)
    assert codes == [0, 0], logs[0][-2000:]
    assert_same_losses(losses(run_dir), expected, rtol=1e-3)
    kept = sorted(int(path.name) for path in saving.iterdir())  # no remains of unfinished saves
    for step in kept:
        assert params(run_dir, step)
    assert kept[-1] == 60 and len(summary) == 10
    with capsys.disabled():
        print("", *summary, sep="\n")


def test_a_signal_to_one_process_stops_all_after_saving_and_a_hanging_one_is_named(tmp_path):
    arguments = [f"--workdir={tmp_path}", *SMALL, "--config.steps=400", "--config.checkpoint.every=100"]
    started = processes.start(2, 2, arguments, tmp_path)
    assert wait_for(lambda: steps_done(tmp_path) >= 3, started)
    kill(signal.SIGTERM, started[1])
    assert processes.finish(started) == [75, 75]
    (saved,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved >= 3

    for aborted_by, stall, code, message in (
        ("the watchdog", 15, 1, r"error: process 1 on \S+ does not respond and is stuck at step \d+"),
        (
            "JAX",
            600,
            -signal.SIGABRT,
            r"process 1 on \S+ has not reported for 15 s; its last report: step \d+",
        ),
    ):
        logs = tmp_path / aborted_by
        before = steps_done(tmp_path)
        started = processes.start(2, 2, [*arguments, f"--config.recovery.stall={stall}"], logs)
        assert wait_for(lambda at=before: steps_done(tmp_path) >= at + 3, started)
        kill(signal.SIGSTOP, started[1])  # it hangs
        assert started[0].popen.wait(120) == code, aborted_by
        kill(signal.SIGKILL, started[1])
        log = started[0].log.read_text()
        assert re.search(message, log), log[-3000:]
        assert ("\nThread 0x" in log) == (aborted_by == "the watchdog"), log[
            -3000:
        ]  # the stacks of all threads
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(saved)]


def test_an_error_in_the_environment_variables_is_one_line(monkeypatch):
    cases = {
        ("host:1", "2", None): "JAX_PROCESS_ID missing",
        ("host:1", "2", "2"): "JAX_PROCESS_ID=2; accepted",
        ("host", "2", "0"): "JAX_COORDINATOR_ADDRESS=host; accepted: HOST:PORT",
    }
    for values, message in cases.items():
        for name, value in zip(distributed.EXPLICIT, values, strict=True):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=message):
            distributed.initialize()
