"""A latent file is safetensors to anyone, says what it was made of, and is refused where it is damaged."""

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vaejax import files
from vaejax.codec import frame_rate
from vaejax.codec.latent_file import Facts, LatentFile, LatentWriter
from vaejax.errors import InputError

FACTS = Facts(
    kind="video",
    frames=31,
    height=35,
    width=51,
    fps=Fraction(24000, 1001),
    variable_rate=False,
    duration=31 * 1001 / 24000,
    mean=(0.1, -2.5, 3e-7),
    std=(1.0, 0.5, 2.0),
    temporal_factor=4,
    spatial_factor=8,
    padding={"frames": 2, "height": 5, "width": 5},
    model="0123456789abcdef",
    source='a "clip" of é.mp4',
)


def written(path, facts=FACTS, dtype="float32", shape=(9, 5, 7, 3)):
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    times = np.arange(facts.frames) * 1001 / 24000
    with files.atomic_file(path) as file:
        writer = LatentWriter(file, shape[-1], dtype)
        for start in range(0, shape[0], 4):
            writer.append(latents[start : start + 4])
        writer.append(latents[:0])
        writer.end(facts, times)
    return latents, times


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_safetensors_package_alone_reads_it(tmp_path, dtype):
    latents, times = written(tmp_path / "a.latent", dtype=dtype)
    found = load_file(tmp_path / "a.latent")
    assert found["latent"].dtype == dtype
    np.testing.assert_array_equal(found["latent"], latents.astype(dtype))
    np.testing.assert_array_equal(found["time"], times)
    with safe_open(tmp_path / "a.latent", "numpy") as file:
        header = file.metadata()
    assert (header["format"], header["kind"], header["frames"], header["fps"]) == (
        "vaejax.latent",
        "video",
        "31",
        "24000/1001",
    )
    assert json.loads(header["mean"]) == [0.1, -2.5, 3e-7] and header["variable_rate"] == "false"
    assert json.loads(header["padding"]) == FACTS.padding and header["source"] == FACTS.source


def test_every_tensor_begins_where_its_numbers_may(tmp_path):
    """Other frameworks view the bytes as numbers in place: 9x5x7x3 halves are no multiple of 8 bytes."""
    written(tmp_path / "a.latent", dtype="float16")
    with open(tmp_path / "a.latent", "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    assert size % 8 == 0 and 9 * 5 * 7 * 3 * 2 % 8
    assert header["time"]["data_offsets"][0] % 8 == 0


def test_it_is_read_by_parts(tmp_path):
    latents, times = written(tmp_path / "a.latent")
    found = LatentFile(tmp_path / "a.latent")
    assert found.facts == FACTS and found.audio() is None
    np.testing.assert_array_equal(np.concatenate(list(found.chunks(4))), latents)
    np.testing.assert_array_equal(found.times, times)


def test_what_is_no_latent_file_gets_one_line(tmp_path):
    written(tmp_path / "whole.latent")
    data = (tmp_path / "whole.latent").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])

    def other(**changes):
        changed = header | {"__metadata__": header["__metadata__"] | changes}
        return data[:8] + json.dumps(changed).encode().ljust(size) + data[8 + size :]

    save_file({"latent": np.zeros((1, 2))}, tmp_path / "foreign.latent")
    bad = {
        "empty": b"",
        "text": b"this is no latent file\n" * 40,
        "short": data[:-1],
        "half": data[: len(data) // 2],
        "longer": data + b"\0",
        "foreign": (tmp_path / "foreign.latent").read_bytes(),
        "later": other(version="2"),
        "frames": other(frames="40"),
        "negative": other(frames="-3"),
        "fps": other(fps="0/0"),
        "mean": other(mean="[1]"),
        "kind": other(kind="sound"),
    }
    for name, content in bad.items():
        (tmp_path / f"{name}.latent").write_bytes(content)
        with pytest.raises(InputError) as error:
            LatentFile(tmp_path / f"{name}.latent")
        assert f"{name}.latent" in str(error.value) and "accepted" in str(error.value), name
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"nowhere.*No such file"):
        LatentFile(tmp_path / "nowhere")


def test_a_photo_has_no_rate(tmp_path):
    photo = dataclasses.replace(FACTS, kind="image", frames=1, fps=None, duration=0.0, seed=3)
    written(tmp_path / "a.latent", photo, shape=(1, 5, 7, 3))
    assert LatentFile(tmp_path / "a.latent").facts == photo


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.latent"
    path.write_bytes(b"before")
    with pytest.raises(KeyError), files.atomic_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_job_left_is_swept_and_nothing_else(tmp_path):
    kept = ["a.mp4", ".b.mp4.0123abcd.part", "a.mp4.0123abcd.part", ".a.mp4.notours.part", ".a.mp4"]
    for name in (*kept, ".a.mp4.0123abcd.part", ".a.mp4.ffffffff.part"):
        (tmp_path / name).touch()
    files.sweep([tmp_path / "a.mp4", tmp_path / "nowhere" / "c"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_what_is_being_written_is_not_swept(tmp_path):
    with files.atomic_file(tmp_path / "a.mp4") as file, files.scratch(tmp_path / "b.mp4") as scratch:
        file.write(b"all of it")
        files.sweep([tmp_path / "a.mp4", tmp_path / "b.mp4"])
        assert scratch.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"all of it"


NTSC = Fraction(24000, 1001)


@pytest.mark.parametrize(
    ("times", "told", "wanted"),
    [
        (np.arange(300) / float(NTSC), [NTSC], (NTSC, True)),
        (np.round(np.arange(300) / float(NTSC), 3), [NTSC], (NTSC, True)),  # Matroska's clock
        (np.round(np.arange(3000) / float(NTSC), 3), [Fraction(24)], (NTSC, True)),  # the header is wrong
        (np.arange(3000) / 24, [NTSC], (Fraction(24), True)),
        (np.arange(50) / 7, [], (Fraction(7), True)),
        (np.array([0, 0.04, 0.08, 0.3]), [Fraction(25)], (Fraction(10), False)),
        (np.array([0.0]), [Fraction(30)], (Fraction(30), True)),
        (np.array([0.0]), [], (Fraction(25), True)),
        (np.array([0, 5001.0, 12000.0]), [Fraction(0)], (Fraction(1, 6000), False)),
    ],
)
def test_the_rate_is_the_one_that_no_time_contradicts(times, told, wanted):
    assert frame_rate.estimate(times, told) == wanted
