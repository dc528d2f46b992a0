"""Prepared data: shards give the samples of their folder, and TFDS data sets are read without TensorFlow."""

import importlib.util
import io
import json
import pathlib
import shlex
import sys

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image

from tests.support import media_files
from vaejax.config.schema import defaults
from vaejax.data import pipeline, prepare
from vaejax.data.bucket import Bucket
from vaejax.data.kinds.tfds import import_tfds
from vaejax.data.sources import open_sources
from vaejax.data.table import candidates
from vaejax.errors import InputError

FIRST = (ds.field("shard") == "media-00000.array_record") & (ds.field("position") == 0)
PHOTOS, CLIPS = Bucket(1, 32, 32, 4), Bucket(5, 32, 32, 2)


def picture(value, width=60, height=48, file_format="PNG"):
    ramp = np.linspace(0, 60, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    file = io.BytesIO()
    Image.fromarray((np.broadcast_to(ramp, (height, width, 3)) + value).astype(np.uint8)).save(
        file, file_format
    )
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    for i in range(6):
        (folder / "sub" / f"{i}.jpg").write_bytes(picture(10 + 20 * i, file_format="JPEG"))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def updates(data, count, buckets=(PHOTOS,)):
    sources = open_sources(data)
    with pipeline.train_stream(sources, buckets, data, seed=0) as stream:
        return sources, [next(stream) for _ in range(count)]


def with_source(**fields):
    data = defaults().data
    data.update(workers=0, zoom=1.3, holdout=0.2, sources={"mine": fields})
    return data


def test_shards_give_the_frames_of_the_folder(folder, tmp_path, capsys):
    out = tmp_path / "shards"
    assert prepare.main([f"--media={folder}", f"--out={out}", "--shard-mb=0.003"]) == 0
    shards = sorted(out.glob("*.array_record"))
    assert len(shards) > 1 and not list(tmp_path.glob(".*"))
    packed, held_out, duration, following = capsys.readouterr().out.splitlines()
    assert packed.startswith(f"{out}: 6 files packed into {len(shards)} shards")
    assert packed.endswith("unreadable files left out: 1")
    assert held_out == "held out for evaluation (data.holdout = 0.05): 1 photo"
    assert duration.startswith("done in ")
    flag, _, value = shlex.split(following)[-1].partition("=")
    assert flag == "--config.data.sources"
    assert json.loads(value) == {"mine": {"kind": "array_record", "path": str(out)}}
    (first,) = ds.dataset(out / "index.parquet").to_table(filter=FIRST)["path"].to_pylist()
    assert ArrayRecordReader(str(shards[0])).read([0])[0] == (folder / first).read_bytes()
    (source,), packed = updates(with_source(kind="array_record", path=str(out)), 3)
    (other,), loose = updates(with_source(kind="media", path=str(folder)), 3)
    for a, b in zip(packed, loose, strict=True):
        np.testing.assert_array_equal(a.batches[PHOTOS.name].frames, b.batches[PHOTOS.name].frames)
    assert [p.replace(str(out), "") for p, _ in source.unreadable] == [
        p.replace(str(folder), "") for p, _ in other.unreadable
    ]
    held = [next(pipeline.eval_batches([s], PHOTOS, with_source(), 1)).frames for s in (source, other)]
    np.testing.assert_array_equal(*held)


def test_shards_of_earlier_versions_still_load(folder, tmp_path):
    """Their index says neither whether a file is HDR nor which decoders read it."""
    data = with_source(kind="array_record", path=str(tmp_path / "shards"))
    prepare.pack(folder, tmp_path / "shards", progress=False)
    (now,) = open_sources(data)
    path = tmp_path / "shards" / "index.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["hdr", "reader"]), path)
    (before,) = open_sources(data)
    assert before.table.equals(now.table) and before.unreadable == now.unreadable


def test_shards_know_hdr_files_and_those_of_earlier_versions_count_as_sdr(folder, tmp_path):
    (folder / "hdr.png").write_bytes(picture(100))
    media_files.tag_png_as_hdr(folder / "hdr.png")
    out = tmp_path / "shards"
    prepare.pack(folder, out, progress=False)
    data = with_source(kind="array_record", path=str(out))
    data.update(hdr="skip", holdout=0.0)
    assert [len(candidates(source, PHOTOS, "train", data)) for source in open_sources(data)] == [6]
    stored = pq.read_table(out / "index.parquet")
    pq.write_table(stored.drop_columns("hdr"), out / "index.parquet")
    assert [len(candidates(source, PHOTOS, "train", data)) for source in open_sources(data)] == [7]


def test_packing_again_replaces_the_shards_but_no_other_folder(folder, tmp_path):
    out = tmp_path / "shards"
    packed = prepare.pack(folder, out, progress=False)
    added = (folder / "sub" / "6.jpg").write_bytes(picture(130, file_format="JPEG"))
    assert prepare.pack(folder, out, progress=False) == (7, 1, packed.size + added, 1)
    with pytest.raises(InputError, match=r"--out=.*accepted: a new or empty folder"):
        prepare.pack(folder, folder / "sub", progress=False)


def test_the_old_shards_stay_until_the_new_ones_are_complete(folder, tmp_path, monkeypatch):
    out = tmp_path / "shards"
    prepare.pack(folder, out, progress=False)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (folder / "sub" / "6.jpg").write_bytes(picture(130, file_format="JPEG"))
    rename = pathlib.Path.rename

    def fail(path, target):
        """The new folder cannot be moved into place."""
        if path.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        prepare.pack(folder, out, progress=False)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.undo()
    assert prepare.pack(folder, out, progress=False).files == 7 and not list(tmp_path.glob(".*"))


def test_a_missing_shard_is_named(folder, tmp_path):
    prepare.pack(folder, tmp_path / "shards", progress=False)
    (tmp_path / "shards" / "media-00000.array_record").unlink()
    with pytest.raises(
        InputError, match=r"data\.sources\.mine\.path = .*media-00000\.array_record is missing"
    ):
        open_sources(with_source(kind="array_record", path=str(tmp_path / "shards")))


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--media=/no/such", "--out={out}"], ["--media", "/no/such", "accepted"]),
        (["--media={folder}", "--out=/dev/null/shards"], ["--out=/dev/null/shards", "a writable folder"]),
        (["--media={folder}"], ["--out is missing", "accepted"]),
        (["--media={folder}", "--out={out}", "--shard-mb=0"], ["--shard-mb=0", "above 0"]),
    ],
)
def test_an_error_is_one_line_with_exit_code_2(folder, tmp_path, capsys, arguments, parts):
    filled = [argument.format(folder=folder, out=tmp_path / "out") for argument in arguments]
    assert prepare.main(filled) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert all(part in message for part in parts), message


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="says what happens without TensorFlow"
)
def test_preparing_tfds_without_tensorflow_names_the_package_to_install(capsys):
    assert prepare.main(["--tfds=clic"]) == 2
    assert "pip install tensorflow" in capsys.readouterr().err


@pytest.fixture
def data_dir(tmp_path):
    """Two prepared TFDS data sets, written as TFDS writes them but without TensorFlow."""
    splits = {"train": [[picture(20 * i)] for i in range(8)] + [[picture(0, 20, 20)]]}
    _write_tfds(tmp_path, "tiny_photos", "image", splits)
    splits = {
        "train": [[picture(5 * i) for i in range(12)]] * 3,
        "test": [[picture(5 * i) for i in range(6)]] * 2,
    }
    _write_tfds(tmp_path, "tiny_clips", "video", splits)
    return str(tmp_path)


def _write_tfds(root, name, feature, splits):
    tfds = import_tfds()
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=name,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        filetype_suffix="array_record",
    )
    infos = []
    for split, samples in splits.items():
        writer = ArrayRecordWriter(
            str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1"
        )
        for pictures in samples:
            example = tf_example_pb2.Example()
            example.features.feature[feature].bytes_list.value.extend(pictures)
            writer.write(example.SerializeToString())
        writer.close()
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[len(samples)], num_bytes=1, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict({feature: tfds.features.Image(shape=(None, None, 3))}),
        split_infos=infos,
        filename_template=template,
        check_data=False,
    )
    if feature == "video":  # TFDS itself cannot write this one without TensorFlow
        path = folder / "features.json"
        features = json.loads(path.read_text())
        features["featuresDict"]["features"]["video"] = {
            "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
            "video": {
                "shape": {"dimensions": ["-1", "48", "60", "3"]},
                "dtype": "uint8",
                "encodingFormat": "png",
            },
        }
        path.write_text(json.dumps(features))


@pytest.mark.parametrize("workers", [0, 1])
def test_tfds_photos_and_clips_are_read_without_tensorflow(data_dir, workers):
    data = defaults().data
    fields = {"kind": "tfds", "data_dir": data_dir}
    data.update(
        workers=workers,
        holdout=0.2,
        sources={"photos": fields | {"name": "tiny_photos"}, "clips": fields | {"name": "tiny_clips"}},
    )
    sources, taken = updates(data, 4, (PHOTOS, CLIPS))
    names = [name for update in taken for name in update.batches[PHOTOS.name].names]
    # The record that turns out to be too small is replaced by others and does not count as unreadable.
    assert len(set(names)) >= 5 and not any("tiny_photos/train/8@" in name for name in names)
    assert not any(batch.skipped for update in taken for batch in update.batches.values())
    for update in taken:
        clip = update.batches[CLIPS.name].frames.astype(float).mean(axis=(2, 3, 4))
        np.testing.assert_allclose(np.diff(clip, axis=1), 5, atol=0.1)  # consecutive frames
    held = next(pipeline.eval_batches(sources, CLIPS, data, 2))
    assert all(name.startswith("tiny_clips/test/") for name in held.names)
    photos = next(source for source in sources if source.label == "photos")
    sizes = [len(candidates(photos, PHOTOS, split, data)) for split in ("train", "eval")]
    assert sizes == [7, 2]  # without an eval split the last fifth is held out
    assert importlib.util.find_spec("tensorflow") is not None or "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    "fields, parts",
    [
        (
            {"name": "no_such_set"},
            ["data.sources.mine.name = 'no_such_set'", "--tfds=no_such_set", "data.media=FOLDER"],
        ),
        (
            {"name": "clic"},
            ["data.sources.mine.name = 'clic'", "vaejax.data.prepare --tfds=clic --out=", "data.media"],
        ),
        ({"name": "tiny_photos", "split": "tran"}, ["data.sources.mine.split = 'tran'", "accepted: train"]),
        ({"name": "tiny_photos", "feature": "im"}, ["data.sources.mine.feature = 'im'", "accepted: image"]),
    ],
)
def test_a_tfds_error_names_both_alternatives(data_dir, fields, parts):
    with pytest.raises(InputError) as error:
        open_sources(with_source(kind="tfds", data_dir=data_dir, **fields))
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message
