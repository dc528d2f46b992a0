"""An export is the same model as its source, with vaejax and without it."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

import vaejax
from tests.support import media_files, saved_run
from tests.support.frames import pans
from tests.support.models import SMALL, randomized
from vaejax.codec.codec import Codec
from vaejax.codec.load import flatten, load_vae
from vaejax.configs import demo
from vaejax.errors import InputError, TrainingFailed
from vaejax.evaluate import __main__ as evaluate
from vaejax.export import __main__ as export
from vaejax.export import stablehlo, verify
from vaejax.rundir import latent_statistics

STATISTICS = {"mean": [0.25, -0.5, 0.0, 1.5], "std": [0.5, 2.0, 1.25, 0.75]}
SHAPE = 5, 16, 24
STEP = 7


def write_run(folder, statistics, media="nowhere"):
    """A run with one checkpoint, whose averaged parameters differ from the others."""
    config = demo.get_config("tiny")
    config.model.update(SMALL)
    config.data.sources = {"media": {"kind": "media", "path": str(media)}}
    config.data.buckets = {"image_32x32": {"batch": 4}}
    config.eval.latent_samples = 4
    folder.mkdir()
    saved_run.write(folder, config, {STEP: saved_run.scaled(randomized()[1], 0.75)})
    if statistics:
        latent_statistics.store(folder, STEP, statistics)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("export") / "run", STATISTICS)


@pytest.fixture(scope="module")
def params():
    """The averaged parameters of the run, by name."""
    return flatten(jax.tree.map(lambda x: 0.75 * np.asarray(x), randomized()[1]))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def exported(request, run):
    out, shape = run.parent / request.param, "x".join(map(str, SHAPE))
    shapes = [f"--stablehlo={shape}", "--stablehlo=1x16x16"] if request.param == "float32" else []
    assert export.main([str(run), str(out), f"--dtype={request.param}", *shapes]) == 0
    return out


@pytest.fixture(scope="module")
def whole(run):
    """A float32 export without StableHLO, to copy and to damage."""
    out = run.parent / "whole"
    assert export.main([str(run), str(out)]) == 0
    return out


def test_an_export_reconstructs_like_its_run(run, whole):
    one, other = vaejax.load(run), vaejax.load(whole)
    for frames in (pans(1, 7, 20, 28)[0], pans(1, 1, 20, 28)[0, 0]):
        z, same_z = one.encode(frames), other.encode(frames)
        np.testing.assert_array_equal(z.values, same_z.values)
        decoded = one.decode(same_z, dtype="float32")  # each decodes the latents of the other
        np.testing.assert_array_equal(decoded, other.decode(z, dtype="float32"))
        assert decoded.shape == frames.shape and decoded.std() > 0.1
    assert (other.fingerprint, other.mean.tolist()) == (one.fingerprint, STATISTICS["mean"])
    assert other.std.tolist() == STATISTICS["std"]


def test_the_code_of_the_model_card_runs_without_vaejax(exported, params, tmp_path):
    """Runs every block of code that does not import vaejax, unchanged, in a process without it."""
    blocks = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    others = [block for block in blocks if "import vaejax" not in block]
    assert len(blocks) == len(others) + 1 == (4 if exported.name == "float32" else 3)
    frames = pans(3, *SHAPE)
    np.save(tmp_path / "frames.npy", frames)
    config = json.loads((exported / "config.json").read_text())
    z = np.random.default_rng(0).normal(size=(3, 2, 2, 3, 4)).astype(np.float32)
    np.save(tmp_path / "latents.npy", z)
    more = f"""
import sys
def leaves(tree, prefix=""):
    for name, leaf in tree.items():
        yield from leaves(leaf, prefix + name + ".") if isinstance(leaf, dict) else [(prefix + name, leaf)]
restored = dict(leaves(params))
assert restored.keys() == weights.keys()
for name, leaf in weights.items():
    assert leaf.dtype == restored[name].dtype == {config["weights"]["dtype"]!r}
    assert leaf.shape == restored[name].shape and (leaf == restored[name]).all()
import numpy as np
np.savez({str(tmp_path / "weights")!r}, **{{k: np.float32(v) for k, v in weights.items()}})
for program in {config["stablehlo"]!r}[:1]:
    x, z = np.load({str(tmp_path / "frames.npy")!r}), np.load({str(tmp_path / "latents.npy")!r})
    found = {{f"encode_{{n}}": encode(x[:n]) for n in (1, 3)}}
    found |= {{f"decode_{{n}}": decode(z[:n]) for n in (1, 3)}}
    np.savez({str(tmp_path / "found")!r}, **found)
assert not [name for name in sys.modules if name.split(".")[0] == "vaejax"]
"""
    code = "\n".join(others) + more
    subprocess.run([sys.executable, "-c", code], cwd=exported.parent, check=True)
    weights = dict(np.load(tmp_path / "weights.npz"))
    assert weights.keys() == params.keys()
    for name, leaf in params.items():
        kind = np.float32 if exported.name == "float32" else ml_dtypes.bfloat16
        np.testing.assert_array_equal(weights[name], leaf.astype(kind).astype(np.float32))
        assert weights[name].shape == leaf.shape
    if exported.name == "float32":
        found, model = np.load(tmp_path / "found.npz"), randomized()[0]
        variables = {"params": saved_run.scaled(randomized()[1], 0.75)}
        mean, std = (np.float32(STATISTICS[key]) for key in ("mean", "std"))
        apply = jax.jit(model.apply, static_argnames="method")
        posterior = apply(variables, np.float32(frames) / 127.5 - 1, method="encode")
        decoded = np.clip(apply(variables, z * std + mean, method="decode"), -1, 1)
        for n in (1, 3):
            wanted = (np.asarray(posterior.mean) - mean) / std
            np.testing.assert_allclose(found[f"encode_{n}"], wanted[:n], atol=1e-5 * np.abs(wanted).max())
            assert found[f"decode_{n}"].dtype == np.uint8
            np.testing.assert_allclose(found[f"decode_{n}"], (decoded[:n] + 1) * 127.5, atol=0.51)


def test_programs_run_on_three_platforms_and_are_listed(run, exported):
    programs = json.loads((exported / "config.json").read_text())["stablehlo"]
    if exported.name == "bfloat16":
        assert programs == [] and not list(exported.glob("*.stablehlo"))
        return
    assert [one["shape"] for one in programs] == [list(SHAPE), [1, 16, 16]]
    assert programs[0]["encode"] == {
        "file": "encode_5x16x24.stablehlo",
        "input": "uint8 (b, 5, 16, 24, 3)",
        "output": "float32 (b, 2, 2, 3, 4)",
    }
    for program in programs:
        for one in (program["encode"], program["decode"]):
            data = bytearray((exported / one["file"]).read_bytes())
            assert jax.export.deserialize(data).platforms == ("cpu", "cuda", "tpu")
            assert one["file"] in (exported / "README.md").read_text()


def test_bfloat16_weights_are_the_same_model_rounded(run, params, capsys):
    out = run.parent / "rounded"
    assert export.main([str(run), str(out), "--dtype=bfloat16"]) == 0
    psnr = re.search(
        r"test clip: (\S+) dB \(source: (\S+) dB, between the two reconstructions: (\S+) dB\)",
        capsys.readouterr().out,
    )
    a, b, between = map(float, psnr.groups())
    assert abs(a - b) < 1 and 25 < between < 80
    one, other = vaejax.load(run), vaejax.load(out)
    frames = pans(1, 5, 16, 24)[0]
    z, rounded = one.encode(frames), other.encode(frames)
    assert 1e-4 < np.abs(z.values - rounded.values).max() < 0.5
    assert other.fingerprint == one.fingerprint and other.decode(z).shape == frames.shape
    numbers = sum(leaf.size for leaf in params.values())
    assert 2 * numbers < (out / "model.safetensors").stat().st_size < 3 * numbers


def test_an_export_can_be_exported_again(run, whole, tmp_path, capsys):
    """Everything recorded about the run is kept; an export has one step only."""
    assert export.main([str(whole), str(tmp_path / "again")]) == 0
    first, second = (json.loads((one / "config.json").read_text()) for one in (whole, tmp_path / "again"))
    assert first == second
    assert export.main([str(whole), str(tmp_path / "other"), "--step=3"]) == 2
    assert f"an export of step {STEP}" in capsys.readouterr().err and not (tmp_path / "other").exists()


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_weights(change):
    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return damage


def change_config(change):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


NAME = "encoder.conv_in.bias"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "damaged export"),
        (lambda folder: (folder / "model.safetensors").unlink(), "damaged export"),
        (change_weights(lambda w: w.pop(NAME)), f"{NAME} is missing"),
        (change_weights(lambda w: w.update({NAME: w[NAME][1:].copy()})), f"{NAME} has shape"),
        (change_weights(lambda w: w.update(more=w[NAME])), "more has shape"),
        (change_weights(lambda w: w[NAME].__iadd__(1e-3)), "not the weights that config.json describes"),
        (change_config(lambda c: c.pop("latents")), "damaged export"),
        (change_config(lambda c: c.pop("weights")), "damaged export"),
        (change_config(lambda c: c["architecture"].update(widths=[8, 16])), "has shape"),
        (
            change_config(lambda c: c["architecture"].update(widths="wide")),
            "does not describe an autoencoder",
        ),
    ],
)
def test_a_damaged_export_is_refused_in_one_line(whole, tmp_path, damage, message):
    shutil.copytree(whole, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(InputError, match=re.escape(message)) as error:
        vaejax.load(tmp_path / "out")
    assert "\n" not in str(error.value) and str(tmp_path / "out") in str(error.value)


@pytest.mark.variants
def test_only_an_earlier_export_is_replaced(run, whole, tmp_path, capsys):
    def refused(out, message):
        before = sorted(path.name for path in out.iterdir()) if out.is_dir() else out.read_bytes()
        assert export.main([str(run), str(out)]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in line and str(out) in line, line
        assert before == (sorted(path.name for path in out.iterdir()) if out.is_dir() else out.read_bytes())

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    refused(tmp_path / "full", "contains other files, such as letter.txt")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "Not a directory")
    refused(run, "the same folder as RUN")
    shutil.copytree(whole, tmp_path / "published")
    (tmp_path / "published" / ".git").mkdir()
    refused(tmp_path / "published", "contains .git, which no export wrote")
    (tmp_path / "published" / ".git").rmdir()
    (tmp_path / "published" / "encode_1x64x64.stablehlo").write_text("of the earlier one")
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "published", tmp_path / "empty"):
        assert export.main([str(run), str(out)]) == 0
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
        assert vaejax.load(out).fingerprint == vaejax.load(whole).fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file", "published", "empty"}


def test_a_killed_export_leaves_the_earlier_one_intact(run, whole, tmp_path):
    out, unfinished = tmp_path / "out", tmp_path / ".out.partial"
    shutil.copytree(whole, out)
    before = (out / "config.json").read_bytes()
    arguments = [sys.executable, "-m", "vaejax.export", str(run), str(out), "--dtype=bfloat16"]
    with subprocess.Popen(arguments, env=os.environ | {"JAX_PLATFORMS": "cpu"}) as job:
        while job.poll() is None and not (unfinished / "config.json").exists():
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
    assert job.returncode == -signal.SIGKILL and (unfinished / "model.safetensors").exists()
    with pytest.raises(InputError, match="an unfinished export"):
        vaejax.load(unfinished)
    assert (out / "config.json").read_bytes() == before
    vaejax.load(out)
    out.rename(tmp_path / ".out.former")  # the state after a kill between the last two renames
    assert export.main([str(run), str(out), "--step=8"]) == 2  # no such step
    assert export.main([str(run), str(out), "--dtype=bfloat16"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((out / "config.json").read_text())["weights"]["dtype"] == "bfloat16"


@pytest.mark.variants
def test_verification_reports_every_difference(run, whole, params):
    source, exported = load_vae(str(run)), load_vae(str(whole))
    verify.check_weights(source, exported, whole / "checkpoint", "float32")
    other = jax.tree.map(lambda x: x * np.float32(1 + 1e-6), source.params)
    for one, two in ((source._replace(params=other), exported), (source, exported._replace(params=other))):
        with pytest.raises(
            TrainingFailed, match=r"values of .* differ from those in the source; nothing was written"
        ):
            verify.check_weights(one, two, whole / "checkpoint", "float32")
    with pytest.raises(TrainingFailed, match="checkpoint"):
        rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), source.params)
        verify.check_weights(source, exported._replace(params=rounded), whole / "checkpoint", "bfloat16")
    codec = Codec(source)
    assert verify.check_codec(codec, Codec(exported), "float32") == {}
    with pytest.raises(TrainingFailed, match="latents differ from those of the source"):
        verify.check_codec(codec, Codec(exported._replace(mean=source.mean + 1)), "float32")
    entry = {"shape": [1, 16, 16], "encode": {"file": "one"}, "decode": {"file": "two"}}
    z = codec.encode(verify.moving_waves(1, 16, 16)).values
    x = codec.decode(z[None])
    right = lambda _: z[None]  # noqa: E731
    verify.check_programs(codec, right, lambda _: x, entry)
    for encode, decode, where in (
        (lambda _: z[None] + 1e-3, lambda _: x, "one: latents differ from the codec's by up to"),
        (lambda _: z[None] * np.nan, lambda _: x, "one: latents differ from the codec's by up to nan"),
        (
            right,
            lambda _: np.where(x > 127, x - 2, x + 2),
            "two: frames differ .* 2 of 255",
        ),
    ):
        with pytest.raises(TrainingFailed, match=where):
            verify.check_programs(codec, encode, decode, entry)


def test_missing_statistics_are_computed(tmp_path):
    media_files.write_photos(tmp_path, 8)
    run = write_run(tmp_path / "run", None, tmp_path)
    assert vaejax.load(run).mean is None
    assert export.main([str(run), str(tmp_path / "out")]) == 0
    kept = latent_statistics.load(run, STEP)
    assert vaejax.load(tmp_path / "out").mean.tolist() == np.float32(kept["mean"]).tolist()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["latents"] == kept


@pytest.mark.variants
def test_without_statistics_latents_are_not_normalized(tmp_path, capsys):
    run = write_run(tmp_path / "run", None)
    assert export.main([str(run), str(tmp_path / "out"), "--stablehlo=1x16x24"]) == 0
    assert (
        "is exported without latent statistics; vaejax encode will refuse the export"
        in capsys.readouterr().err
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "codec.encode(frames, normalize=False)" in card and "latents are not normalized" in card
    frames = pans(1, 1, 16, 24)
    encode = stablehlo.read(tmp_path / "out" / "encode_1x16x24.stablehlo")
    wanted = vaejax.load(run).encode(frames, normalize=False).values
    np.testing.assert_allclose(encode(frames), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.variants
def test_an_export_is_evaluated_and_its_card_shows_the_scores(run, whole, tmp_path, capsys):
    (tmp_path / "my photos").mkdir()
    media_files.write_photos(tmp_path / "my photos", 4)
    arguments = ["--checkpoint", str(whole), "--data", str(tmp_path / "my photos"), "--out", str(tmp_path)]
    assert evaluate.main(arguments) == 0  # its buckets are those that the run was trained on
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["training_latents"][str(whole)] == STATISTICS and results["buckets"] == ["image_32x32"]
    scores = results["results"]["image_32x32"][str(whole)]["scores"]
    out = tmp_path / "out"
    assert export.main([str(run), str(out), f"--scores={tmp_path / 'results.json'}"]) == 0
    card, config = (out / "README.md").read_text(), (out / "config.json").read_text()
    assert f"{scores['psnr']['value']:.2f} ({scores['psnr']['low']:.2f} to" in card and "my photos" in card
    assert (
        str(tmp_path) not in card + config
        and json.loads(config)["scores"]["buckets"]["image_32x32"] == scores
    )
    results["settings"]["codecs"][str(whole)]["step"] += 1
    (tmp_path / "results.json").write_text(json.dumps(results))
    for text, wanted in (
        (json.dumps(results), f"no scores of this model at step {STEP}"),
        ("{", "no scores"),
    ):
        (tmp_path / "results.json").write_text(text)
        assert export.main([str(run), str(tmp_path / "no"), f"--scores={tmp_path / 'results.json'}"]) == 2
        assert wanted in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "no").exists()
    # RUN/results.json is used if it is of this model, and ignored otherwise.
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    assert export.main([str(tmp_path / "run"), str(tmp_path / "none")]) == 0
    assert "the model card has no scores" in capsys.readouterr().err
    results["settings"]["codecs"][str(whole)]["step"] -= 1
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    assert export.main([str(tmp_path / "run"), str(tmp_path / "some")]) == 0
    assert (tmp_path / "some" / "README.md").read_text().replace("# some", "# out").replace(
        '"some', '"out'
    ) == card


def test_an_export_of_another_version_loads(whole, tmp_path):
    """config.json has every field; unknown fields are ignored, missing ones take their defaults."""
    built = load_vae(str(whole)).architecture
    saved = json.loads((whole / "config.json").read_text())["architecture"]
    assert saved == {"family": "vaejax", **json.loads(json.dumps(dataclasses.asdict(built.encoder)))}
    shutil.copytree(whole, tmp_path / "out")
    change_config(lambda config: config["architecture"].update(color="red"))(tmp_path / "out")
    assert load_vae(str(tmp_path / "out")).architecture == built
    for name in ("family", "pixel_channels"):  # as version 0.1 wrote it
        change_config(lambda config, name=name: config["architecture"].pop(name))(tmp_path / "out")
    assert load_vae(str(tmp_path / "out")).architecture == built


def test_the_checkpoint_is_read_by_orbax_alone(whole, params):
    with ocp.StandardCheckpointer() as checkpointer:
        found = flatten(checkpointer.restore(whole / "checkpoint"))
    assert found.keys() == params.keys()
    for name, leaf in params.items():
        np.testing.assert_array_equal(found[name], leaf)
