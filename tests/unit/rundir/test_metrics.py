"""The sinks of a run: their files can be read back, whatever interrupted the run."""

import json
import pathlib
import struct
import subprocess
import sys
from io import BytesIO

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from vaejax.rundir.metrics import JsonlWriter, TensorboardWriter


def strict(path):
    """The lines of a metrics file, by a parser that refuses NaN."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def events(directory):
    """The events of a folder in the order of writing, parsed from the record format of TensorBoard."""
    out = []
    for path in sorted(directory.glob("events.*")):
        raw = path.read_bytes()
        while raw:
            (length,) = struct.unpack("<Q", raw[:8])
            out.append(Event.FromString(raw[12 : 12 + length]))
            raw = raw[16 + length :]
    return out


def test_a_line_holds_the_numbers_of_one_step_split_and_bucket(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    writer.write_scalars(
        3,
        {
            "train/image_64x64/nll": jnp.float32(0.1),
            "train/all/grad_norm": 2.5,
            "train/image_64x64/term/kl": np.float64(1e-9),
            "eval/image_64x64/psnr": jnp.bfloat16(30),
            "train/all/samples": np.int64(2**40),
        },
    )
    writer.close()
    assert strict(tmp_path / "metrics.jsonl") == [
        {"step": 3, "split": "train", "bucket": "image_64x64", "nll": 0.1, "term/kl": 1e-9},
        {"step": 3, "split": "train", "bucket": "all", "grad_norm": 2.5, "samples": 2**40},
        {"step": 3, "split": "eval", "bucket": "image_64x64", "psnr": 30.0},
    ]


def test_numbers_that_are_not_finite_survive_strict_json(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    values = {"a": np.nan, "b": jnp.float32(np.inf), "c": -np.inf, "d": 1.0}
    writer.write_scalars(1, {f"train/all/{name}": value for name, value in values.items()})
    (line,) = strict(tmp_path / "metrics.jsonl")
    assert [line[name] for name in "abcd"] == ["NaN", "Infinity", "-Infinity", 1.0]
    np.testing.assert_array_equal([float(line[name]) for name in "abcd"], list(values.values()))


@pytest.mark.parametrize("key", ["nll", "train/nll", "test/all/nll", "train//nll", "train/all/step"])
def test_a_key_of_another_form_is_refused(tmp_path, key):
    with pytest.raises(ValueError, match=key):
        JsonlWriter(tmp_path / "metrics.jsonl").write_scalars(1, {key: 1.0})


def test_a_written_line_survives_the_death_of_the_writer(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    writer.write_scalars(1, {"train/all/nll": 1.0})
    assert len(strict(tmp_path / "metrics.jsonl")) == 1  # neither flushed nor closed


def test_a_resumed_run_counts_no_step_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in range(1, 8):
        writer.write_scalars(step, {"train/all/nll": step, "eval/all/psnr": 10 * step})
    writer.close()
    before = path.read_bytes().splitlines()

    writer = JsonlWriter(path, resume_step=4)  # the checkpoint is of step 4, the run was killed at step 7
    for step in range(5, 9):
        writer.write_scalars(step, {"train/all/nll": -step})
    writer.close()
    assert path.read_bytes().splitlines()[:8] == before[:8]
    assert [line["nll"] for line in strict(path) if "nll" in line] == [1, 2, 3, 4, -5, -6, -7, -8]


@pytest.mark.parametrize("torn", [b'{"step": 2, "split": "tra', b'{"step": 2}', b"2\n", b"\0\0\0\0"])
def test_a_torn_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1, "split": "train", "bucket": "all", "nll": 1.0}\n'
    path.write_bytes(whole + torn)
    writer = JsonlWriter(path, resume_step=2)
    writer.write_scalars(3, {"train/all/nll": 3.0})
    assert path.read_bytes().startswith(whole)
    assert [line["step"] for line in strict(path)] == [1, 3]


def test_a_kill_while_the_file_is_rewritten_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    JsonlWriter(path).write_scalars(1, {"train/all/nll": 1.0})
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        JsonlWriter(path, resume_step=1)
    assert path.read_bytes() == before


def test_a_run_from_the_beginning_starts_an_empty_file(tmp_path):
    JsonlWriter(tmp_path / "metrics.jsonl").write_scalars(0, {"eval/all/psnr": 1.0})
    JsonlWriter(tmp_path / "metrics.jsonl").write_scalars(0, {"eval/all/psnr": 2.0})
    assert [line["psnr"] for line in strict(tmp_path / "metrics.jsonl")] == [2.0]


def test_tensorboard_holds_scalars_images_and_the_configuration(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 20, 3), np.uint8)
    writer = TensorboardWriter(tmp_path)
    writer.write_scalars(7, {"train/image_64x64/nll": jnp.float32(0.25)})
    writer.write_images(7, {"panel": images[0], "several": images})
    writer.write_hparams({"optim.agc": 0.01})
    writer.close()
    values = {v.tag: (event.step, v) for event in events(tmp_path) for v in event.summary.value}
    step, scalar = values["train/image_64x64/nll"]
    assert (step, scalar.simple_value) == (7, 0.25)

    def decoded(tag):
        return np.asarray(Image.open(BytesIO(values[tag][1].image.encoded_image_string)))

    np.testing.assert_array_equal(decoded("panel"), images[0])
    for i in range(2):
        np.testing.assert_array_equal(decoded(f"several/{i}"), images[i])
    assert any(b"optim.agc" in v.tensor.string_val[0] for _, v in values.values() if v.tensor.string_val)


@pytest.mark.parametrize(("resume_step", "purged_from"), [(4, 5), (0, 0)])
def test_tensorboard_hides_the_steps_that_a_resumed_run_repeats(tmp_path, resume_step, purged_from):
    TensorboardWriter(tmp_path, resume_step).close()
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log") and e.session_log.status == 1]
    assert starts == [purged_from]


@pytest.mark.parametrize("pause", ["0", "0.01"])
def test_a_run_continues_when_tensorboard_cannot_be_written(tmp_path, pause):
    """A file limited to 2 kB acts like a full disk: the writing thread ends, and nothing waits for it."""
    program = """
import resource, sys, time
from vaejax.rundir.metrics import TensorboardWriter
writer = TensorboardWriter(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
for step in range(200):
    writer.write_scalars(step, {"train/all/loss": 1.0})
    time.sleep(float(sys.argv[2]))
writer.flush()
writer.close()
print("continued")
"""
    found = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "tensorboard", pause],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0 and "continued" in found.stdout
    assert found.stderr.count("tensorboard: writing failed, is the disk full?") == 1
