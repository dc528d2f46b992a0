"""A contract: what commit d58aa62 wrote (a run, latents, an export) keeps its meaning in every later version.

The files in tests/support/compatibility are never made again; make_compatibility_data.py beside that folder
shows how they were made. These tests use commands, `vaejax.load` and the file formats themselves. A
configuration key may go: its saved value is then ignored. A key may come: a run without it takes the default.
"""

import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import av
import jax
import jax.export
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from safetensors.numpy import load_file

import vaejax

ROOT = pathlib.Path(__file__).parents[3]
KEPT = ROOT / "tests" / "support" / "compatibility"
FRAMES = 30  # of media/clip.mp4


@pytest.fixture(scope="module")
def expected():
    with np.load(KEPT / "expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A copy of the run beside its media, its configurations with keys missing and foreign keys added."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(KEPT / "media", folder / "media")
    shutil.copytree(KEPT / "run", folder / "run")
    change_keys(folder / "run" / "config.json")
    for step in ("2", "4"):
        change_keys(folder / "run" / "checkpoints" / step / "config" / "metadata")
    return folder / "run"


@pytest.fixture(scope="module")
def codec(run):
    return vaejax.load(run)


def change_keys(path):
    """Removes keys from a saved configuration and adds keys that no version knows."""
    config = json.loads(path.read_text())
    del config["recovery"], config["eval"]["samples"], config["model"]["film"]
    config |= {"key_of_another_version": 1, "section_of_another_version": {"key": [1, 2]}}
    config["loss"]["weights"]["term_of_another_version"] = 0.5
    config["loss"]["adversarial"]["key_of_another_version"] = True
    path.write_text(json.dumps(config))


def assert_same_frames(found, kept):
    """Within one level of 255; another machine may round one value in a hundred differently."""
    assert found.dtype == np.uint8
    assert found.shape == kept.shape
    apart = np.abs(found.astype(int) - kept)
    assert apart.max() <= 1
    assert np.mean(apart > 0) < 0.01


def assert_same_latents(found, kept):
    np.testing.assert_allclose(np.asarray(found), kept, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["photo", "clip"])
def test_a_run_encodes_and_decodes_as_it_did(codec, expected, name):
    photo = np.asarray(Image.open(KEPT / "media" / "0.png"))
    latent = codec.encode(photo if name == "photo" else expected["clip"])
    assert_same_latents(latent, expected[f"{name}_latent"])
    assert_same_frames(codec.decode(latent), expected[f"{name}_decoded"])


def test_a_run_and_its_export_have_the_kept_fingerprints(run, codec, expected):
    """Latent files name their model by this fingerprint of its parameters."""
    assert codec.fingerprint == expected["fingerprint"]
    assert vaejax.load(run, step=2).fingerprint == expected["fingerprint_of_step_2"]
    export = vaejax.load(KEPT / "export")
    assert export.fingerprint == expected["fingerprint"]
    assert export.architecture == codec.architecture
    np.testing.assert_array_equal(export.mean, codec.mean)
    np.testing.assert_array_equal(export.std, codec.std)


def test_an_export_encodes_and_decodes_as_it_did(expected):
    export = vaejax.load(KEPT / "export")
    latent = export.encode(expected["clip"])
    assert_same_latents(latent, expected["clip_latent"])
    assert_same_frames(export.decode(latent), expected["clip_decoded"])


def test_exported_programs_run_without_vaejax(expected):
    def call(kind, batch):
        stored = (KEPT / "export" / f"{kind}_5x32x32.stablehlo").read_bytes()
        return np.asarray(jax.export.deserialize(bytearray(stored)).call(batch))

    assert_same_latents(call("encode", expected["program_frames"]), expected["program_encoded"])
    assert_same_frames(call("decode", expected["program_encoded"]), expected["program_decoded"])


def test_an_exported_orbax_checkpoint_holds_the_safetensors_weights():
    weights = load_file(KEPT / "export" / "model.safetensors")
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((KEPT / "export" / "checkpoint").absolute())
    leaves = {".".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    assert leaves.keys() == weights.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, weights[name], err_msg=name)


@pytest.fixture(scope="module")
def decoded(run):
    """The latent files, decoded by the command."""
    out = run.parent / "back"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["decode", str(KEPT / "latents"), str(out), f"--model={run}", "--crf=1"]
        patch.setattr(sys, "argv", ["vaejax.codec", *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("vaejax.codec", run_name="__main__")
    assert not end.value.code
    return out


def test_a_latent_file_of_a_photo_decodes_as_it_did(decoded, expected):
    assert_same_frames(np.asarray(Image.open(decoded / "0.png")), expected["photo_decoded"])


def test_a_latent_file_of_a_clip_decodes_as_it_did(decoded, expected):
    """H.264 and its subsampled chroma cost a few levels; the audio packets are copied, bit for bit."""
    kept = expected["clip_file_decoded"].astype(int)
    with av.open(str(decoded / "clip.mp4")) as container:
        found = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert found.shape == kept.shape
    assert np.abs(found - kept).mean() < 2
    with av.open(str(decoded / "clip.mp4")) as back, av.open(str(KEPT / "media" / "clip.mp4")) as source:
        assert sound(back) == sound(source)


def sound(container):
    packets = [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]
    assert packets
    return packets


# A configuration file: the run's values of all keys that still exist, the demo's values of later keys.
CONFIG = """
import json, runpy

def get_config():
    config = runpy.run_path({demo!r})["get_config"]("tiny")
    update(config, json.load(open({saved!r})))
    return config

def update(config, saved, open_sections=("sources", "buckets")):
    for name in set(config) & set(saved):
        if isinstance(saved[name], dict) and name not in open_sections:
            update(config[name], saved[name])
        else:
            config[name] = tuple(saved[name]) if isinstance(saved[name], list) else saved[name]
"""


@pytest.fixture(scope="module")
def resumed(run, tmp_path_factory):
    """A copy without its last checkpoint, which the command has trained from update 2 to its end."""
    folder = tmp_path_factory.mktemp("resumed")
    shutil.copytree(run.parent / "run", folder / "run")
    shutil.copytree(run.parent / "media", folder / "media")
    shutil.rmtree(folder / "run" / "checkpoints" / "4")
    demo = next(ROOT.glob("**/configs/demo.py"))
    (folder / "config.py").write_text(CONFIG.format(demo=str(demo), saved=str(KEPT / "run" / "config.json")))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / "build" / "xla"),
    }
    command = [sys.executable, "-m", "vaejax.main", "--config=config.py", "--workdir=run"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


TIMES = ("seconds", "per_second", "data_wait")  # endings of the names of timings


@pytest.mark.runs
def test_a_resumed_run_has_the_losses_and_scores_of_the_kept_run(resumed):
    kept, found = (
        {(m["step"], m["split"], m["bucket"]): m for m in lines(f / "metrics.jsonl")}
        for f in (KEPT / "run", resumed)
    )
    assert kept.keys() <= found.keys()
    for where, scalars in kept.items():
        for name, value in scalars.items():
            if name in found[where] and isinstance(value, float) and not name.endswith(TIMES):
                assert found[where][name] == pytest.approx(value, rel=1e-4, abs=1e-5), (where, name)
    for step in (3, 4):
        assert {"loss", "nll", "kl", "perceptual"} <= found[step, "train", "video_5x32x32"].keys()
    assert {"psnr", "ssim"} <= found[4, "eval", "mean"].keys()


@pytest.mark.runs
def test_a_resumed_run_has_the_parameters_of_the_kept_run(resumed):
    kept, found = (saved(folder / "checkpoints" / "4") for folder in (KEPT / "run", resumed))
    assert kept.keys() == found.keys()
    for name, leaf in kept.items():
        # Processors sum in different orders. A value near 0 in an array of moments that reaches 600 then
        # differs by the spacing of float32 at 600, 6e-5.
        spacing = np.spacing(np.abs(leaf).max(initial=0).astype(np.float32))
        np.testing.assert_allclose(found[name], leaf, rtol=1e-3, atol=max(1e-5, 2 * spacing), err_msg=name)


def saved(checkpoint):
    """Every array of a checkpoint by name, read by Orbax alone."""
    items = ("state", "discriminator_image", "discriminator_video")
    with ocp.StandardCheckpointer() as checkpointer:
        trees = {item: checkpointer.restore((checkpoint / item).absolute()) for item in items}
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(trees)}


@pytest.mark.runs
def test_a_resumed_run_continues_the_samples_and_records_of_the_kept_run(resumed):
    """The kept run counts batches, later versions samples."""
    position = pathlib.Path("checkpoints", "4", "data", "metadata")
    kept, found = (json.loads((folder / position).read_text()) for folder in (KEPT / "run", resumed))
    buckets = json.loads((KEPT / "run" / "config.json").read_text())["data"]["buckets"]
    assert found == {"samples": {name: n * buckets[name]["batch"] for name, n in kept.items()}}
    for name in ("bad_samples.jsonl", "bad_steps.jsonl"):
        assert lines(resumed / name) == lines(KEPT / "run" / name)


@pytest.mark.runs
def test_a_resumed_run_has_the_latent_statistics_of_the_kept_run(resumed):
    statistics = pathlib.Path("checkpoints", "4", "latents.json")
    kept, found = (json.loads((folder / statistics).read_text()) for folder in (KEPT / "run", resumed))
    for name in ("mean", "std"):
        np.testing.assert_allclose(found[name], kept[name], rtol=1e-3, atol=1e-4)
