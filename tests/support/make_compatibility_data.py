"""Makes the run, latent files and export that tests/unit/rundir/test_compatibility.py opens.

Commit d58aa62 made the data once. Never make them again with later code: they prove that it opens old files.
To repeat it, in a checkout of that commit with its dependencies installed:

    cp THIS_FILE make_compatibility_data.py
    JAX_PLATFORMS=cpu PYTHONPATH=. python make_compatibility_data.py OUT

OUT, a new folder, then holds:

    media/          six photos, a clip with sound and a broken photo, all drawn here
    run/            four updates with every loss of the demo; the first is not finite and is skipped.
                    Checkpoints after updates 2 and 4. TensorBoard files and panels are left out.
    latents/        a photo and the clip, encoded by `python -m vaejax.codec encode`
    export/         `python -m vaejax.export run export --stablehlo=5x32x32`
    expected.npz    frames and latents that this code computed from them
"""

import importlib
import os
import pathlib
import shutil
import subprocess
import sys

import av
import jax.export
import numpy as np
import safetensors.numpy
from PIL import Image

SIDE = 48  # pixels of photos and clip
FRAMES, RATE = 30, 24  # length and frame rate of the clip, whose last fifth is held out
SAMPLE_RATE = 16000


def main(out: pathlib.Path) -> None:
    """Writes all of the data to a new folder."""
    out.mkdir(parents=True)
    os.environ["PYTHONPATH"] = os.getcwd()
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = (
        "0"  # exported programs shall not name folders of this machine
    )
    # Relative paths keep the folders of this machine out of the run's files.
    os.chdir(out)
    make_media(pathlib.Path("media"))
    train()
    for action in (
        ["vaejax.codec", "encode", "media/0.png", "latents/0.png.latent", "--model=run", "--dtype=float32"],
        ["vaejax.codec", "encode", "media/clip.mp4", "latents/clip.mp4.latent", "--model=run"],
        ["vaejax.export", "run", "export", "--stablehlo=5x32x32"],
    ):
        pathlib.Path("latents").mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-m", *action], check=True)
    np.savez_compressed("expected.npz", **expected())
    prune()


def make_media(folder: pathlib.Path) -> None:
    """Draws photos and a clip of smooth colors, with a tone as its sound."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        small = Image.fromarray(rng.integers(256, size=(6, 6, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.BICUBIC).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    small = Image.fromarray(rng.integers(256, size=(6, 9, 3), dtype=np.uint8))
    wide = np.asarray(small.resize((SIDE + FRAMES, SIDE), Image.BICUBIC))
    tone = np.sin(np.arange(FRAMES * SAMPLE_RATE // RATE) * 2 * np.pi * 440 / SAMPLE_RATE)
    with av.open(str(folder / "clip.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        video = container.add_stream("libx264", rate=RATE)
        video.width = video.height = SIDE
        video.pix_fmt = "yuv420p"
        frame = av.AudioFrame.from_ndarray(0.5 * tone[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in sound.encode(frame) + sound.encode():
            container.mux(packet)
        for t in range(FRAMES):
            picture = np.ascontiguousarray(wide[:, t : t + SIDE])
            for packet in video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                container.mux(packet)
        for packet in video.encode():
            container.mux(packet)


def train() -> None:
    """Trains four updates of a tiny model, with a NaN in the first."""
    sys.path.insert(0, os.environ["PYTHONPATH"])
    # Imported by name, because later versions have moved these modules.
    train, fault, demo = map(importlib.import_module, ("vaejax.train", "vaejax.fault", "configs.demo"))
    config = demo.get_config("tiny")
    config.data.media = "media"
    config.data.buckets = {"image_32x32": {"batch": 2}, "video_5x32x32": {"batch": 1}}
    config.data.fps = float(RATE)
    config.data.zoom = 1.5
    config.model.widths = (8, 8, 12)
    config.model.latent_channels = 4
    config.loss.adversarial.width = 2
    config.optim.learning_rate = 1e-3
    config.optim.warmup = 1
    config.ema.decay = 0.5  # so that four updates change the averaged parameters
    config.checkpoint.every = 2
    config.eval.every = 4
    config.eval.samples = 2
    config.eval.linear_samples = 0
    config.eval.latent_samples = 4
    config.panels.samples = 1
    train.fit(config, "run", [fault.Fault("data", "image_32x32", lambda step, x: step == 0)])


def expected() -> dict[str, np.ndarray]:
    """Encodes and decodes with the code that wrote the files, for later versions to compare."""
    import vaejax

    photo = np.asarray(Image.open("media/0.png"))
    with av.open("media/clip.mp4") as container:
        clip = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])[:7]
    codec = vaejax.load("run")
    found = {"clip": clip, "fingerprint": np.array(codec.fingerprint)}
    found["fingerprint_of_step_2"] = np.array(vaejax.load("run", step=2).fingerprint)
    for name, frames in (("photo", photo), ("clip", clip)):
        latent = codec.encode(frames)
        found[f"{name}_latent"], found[f"{name}_decoded"] = latent.values, codec.decode(latent)
    stored = safetensors.numpy.load_file("latents/clip.mp4.latent")["latent"]
    found["clip_file_decoded"] = codec.decode(stored.astype(np.float32))[:FRAMES]
    found["program_frames"] = np.stack([clip[:5, :32, :32], clip[2:7, 16:, 16:]])  # a batch of two
    found["program_encoded"] = call("encode", found["program_frames"])
    found["program_decoded"] = call("decode", found["program_encoded"])
    return found


def call(program: str, batch: np.ndarray) -> np.ndarray:
    """Runs an exported program."""
    stored = pathlib.Path(f"export/{program}_5x32x32.stablehlo").read_bytes()
    return np.asarray(jax.export.deserialize(bytearray(stored)).call(batch))


def prune() -> None:
    """Removes what no test needs, and the absolute paths that Orbax notes beside a finished checkpoint."""
    for name in ("tensorboard", "panels"):
        shutil.rmtree(pathlib.Path("run", name), ignore_errors=True)
    for path in pathlib.Path("media").glob(".*"):
        path.unlink()
    for path in pathlib.Path().rglob("commit_success.txt"):
        path.write_text(path.read_text().replace(f"{pathlib.Path.cwd()}/", ""))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).absolute())
