"""The same files give the same samples in the same order: loose, packed, or in a bucket."""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support import media_files
from vaejax.config.schema import defaults
from vaejax.data import index, pipeline, prepare
from vaejax.data.bucket import Bucket
from vaejax.data.kinds import indexed, manifest, parquet, webdataset
from vaejax.data.sources import open_sources
from vaejax.errors import InputError
from vaejax.runtime import storage

PHOTOS, CLIPS = Bucket(1, 32, 32, 4), Bucket(5, 32, 32, 2)
NAMES = "abcdefghij"


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Ten photos and four clips in a tree, and a broken file."""
    folder = tmp_path_factory.mktemp("collections") / "media"
    (folder / "deep" / "er").mkdir(parents=True)
    rng = np.random.default_rng(0)

    def picture():
        return Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48))

    for i, name in enumerate(NAMES):
        picture().save(folder / ("deep/" * (i % 2)) / f"{name}.jpg")
    for i in range(4):
        pictures = [np.asarray(picture()) for _ in range(12)]
        media_files.write_clip(folder / "deep" / "er" / f"clip{i}.mp4", pictures, rate=24)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def listed(folder):
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if not p.name.startswith(".") and p.is_file()
    )


def labels_of(name):
    return {"aesthetic": len(name) + ord(pathlib.Path(name).stem[-1]) / 1000, "source": name}


def as_tars(folder, out, count=3):
    out.mkdir()
    names = listed(folder)
    for number in range(count):
        with tarfile.open(out / f"{number:05}.tar", "w") as tar:
            for name in names[number::count]:
                key = name.rsplit(".", 1)[0]
                parts = {
                    name: (folder / name).read_bytes(),
                    f"{key}.json": json.dumps(labels_of(name)).encode(),
                    f"{key}.txt": f"a picture of {name}".encode(),
                }
                for member, content in parts.items():
                    header = tarfile.TarInfo(member)
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))


def as_parquet(folder, out, group=3):
    out.mkdir()
    names = listed(folder)
    for number in range(2):
        rows = [
            {"media": {"bytes": (folder / name).read_bytes(), "path": name}} | labels_of(name)
            for name in names[number::2]
        ]
        pq.write_table(pa.Table.from_pylist(rows), out / f"{number}.parquet", row_group_size=group)


def as_manifest(folder, path):
    rows = [{"path": name} | labels_of(name) for name in listed(folder)]
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    elif path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def places(media):
    """Every packing of the files: {name: fields of a source}."""
    parent = media.parent
    as_tars(media, parent / "tars")
    as_parquet(media, parent / "parquet")
    prepare.pack(media, parent / "shards", shard_mb=0.005, progress=False)
    fields = {
        "media": {"kind": "media", "path": str(media)},
        "webdataset": {"kind": "webdataset", "path": str(parent / "tars")},
        "parquet": {"kind": "parquet", "path": str(parent / "parquet")},
        "array_record": {"kind": "array_record", "path": str(parent / "shards")},
    }
    for ending in ("csv", "jsonl", "parquet"):
        as_manifest(media, media / f"manifest.{ending}")
        fields[f"manifest.{ending}"] = {"kind": "manifest", "path": str(media / f"manifest.{ending}")}
    for name in ("webdataset", "parquet", "manifest.csv"):
        out = parent / f"shards of {name}"
        arguments = [f"--source={json.dumps(fields[name])}", f"--out={out}", "--shard-mb=0.02", "--workers=1"]
        assert prepare.main(arguments) == 0
        fields[out.name] = {"kind": "array_record", "path": str(out)}
    return fields


def settings(fields, **changes):
    data = defaults().data
    data.update(workers=0, zoom=1.3, holdout=0.3, sources={"mine": fields}, **changes)
    return data


def samples(fields, **changes):
    """The frames of training samples, and of held-out ones, photos and clips."""
    data = settings(fields, **changes)
    sources = open_sources(data)
    frames = []
    for bucket in (PHOTOS, CLIPS):
        frames += list(pipeline.train_samples(sources, bucket, data, 6, seed=3))
        frames += [batch.frames for batch in pipeline.eval_batches(sources, bucket, data, 4)]
    return frames


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_packing_gives_the_samples_of_the_folder(places):
    expected = samples(places["media"])
    assert len({frame.tobytes() for frame in expected[:6]}) > 3  # so the order matters
    for fields in places.values():
        assert_same(samples(fields), expected)


def test_every_packing_that_is_large_gives_the_samples_of_the_folder(places, tmp_path, monkeypatch):
    expected = samples(places["media"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(indexed, "LARGE", 1)
    for fields in places.values():
        assert_same(samples(fields), expected)
        assert_same(samples(fields), expected)  # from the table that the first start made
        assert open_sources(settings(fields))[0].files
    chosen = {"filter": "parse_filename(source) < 'e' and kind = 'image'"}
    (source,) = open_sources(settings(places["webdataset"] | chosen))
    assert len(source.table) == 4


def test_a_filter_selects_by_labels_and_by_content(places):
    wanted = {f"{name}.jpg" for name in "abcd"}
    for name in places.keys() - {"media", "array_record"}:
        expression = "parse_filename(source) < 'e' and kind = 'image' and width = 64 and aesthetic > 0"
        (source,) = open_sources(settings(places[name], filter=expression))
        assert {os.path.basename(path) for path in source.table["relative_path"].to_pylist()} == wanted, name
    (source,) = open_sources(settings(places["media"] | {"filter": "frames > 1"}, filter="no_such > 1"))
    assert set(source.table["kind"].to_pylist()) == {"video"}


@pytest.mark.parametrize(
    ("kind", "expression", "parts"),
    [
        ("webdataset", "aesthtic > 1", ["aesthtic", "accepted: SQL over path, kind, width", "aesthetic"]),
        ("media", "width >", ["syntax error", "accepted: SQL over"]),
        ("parquet", "width > 100", ["files match; accepted"]),
        ("media", "path in (select content from read_text('/etc/hosts'))", ["disabled"]),
    ],
)
def test_a_wrong_filter_gets_one_line(places, kind, expression, parts):
    with pytest.raises(InputError) as error:
        open_sources(settings(places[kind], filter=expression))
    message = str(error.value)
    assert message.startswith(
        f"data.filter = {expression!r}: data.sources.mine.path = {places[kind]['path']}"
    )
    assert "\n" not in message and all(part in message for part in parts), message


@pytest.fixture(scope="module", params=["gcs", "s3"])
def away(places, media, request):
    """The URL of all packings of the files in a bucket."""
    root = request.getfixturevalue(request.param)
    system = fsspec.filesystem(root.partition("://")[0], skip_instance_cache=True)
    system.put(str(media.parent), f"{root}/all", recursive=True)
    return f"{root}/all"


@pytest.mark.parametrize("name", ["media", "webdataset", "parquet", "array_record", "manifest.csv"])
def test_buckets_give_the_samples_of_the_folder(places, media, away, name):
    fields = places[name]
    url = f"{away}/{os.path.relpath(fields['path'], media.parent)}"
    assert_same(samples(fields | {"path": url}), samples(places["media"]))


def test_a_large_collection_in_a_bucket_gives_the_samples_of_the_folder(
    places, media, away, tmp_path, monkeypatch
):
    expected = samples(places["media"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(indexed, "LARGE", 1)
    for _ in range(2):
        assert_same(samples(places["webdataset"] | {"path": f"{away}/tars"}), expected)


@pytest.mark.parametrize("place", ["disk", "gcs"])
def test_files_that_a_large_manifest_describes_are_not_looked_up(
    place, places, media, tmp_path, monkeypatch, request
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = samples(places["media"])
    root, system = str(tmp_path), fsspec.filesystem("file")
    if place == "gcs":
        root, system = f"{request.getfixturevalue('gcs')}/described", fsspec.filesystem("gs")
    system.put(str(media), f"{root}/media", recursive=True)
    (index_of,) = pathlib.Path(media).glob(".*.parquet")
    facts = ["path", "width", "height", "fps", "frames", "duration"]
    known = pq.read_table(index_of).filter(pc.field("error").is_null()).select(facts)

    def write(table):
        with system.open(f"{root}/media/all.parquet", "wb") as file:
            pq.write_table(table, file)

    write(known)
    monkeypatch.setattr(indexed, "LARGE", 1)
    monkeypatch.setattr(manifest, "LARGE", 1)
    looked_up, entry = [], storage.entry
    monkeypatch.setattr(storage, "entry", lambda path: looked_up.append(path) or entry(path))
    build, built = index.load_or_build, []
    monkeypatch.setattr(index, "load_or_build", lambda *a, **k: built.append(1) or build(*a, **k))
    fields = {"kind": "manifest", "path": f"{root}/media/all.parquet"}

    def files():
        return set(open_sources(settings(fields))[0].table["relative_path"].to_pylist())

    for _ in range(2):  # the second start opens the table of the first
        assert files() == set(known["path"].to_pylist()) and len(built) == 1
    assert looked_up and all(path.endswith(".parquet") for path in looked_up)
    assert_same(samples(fields), expected)
    system.rm(f"{root}/media/a.jpg")
    assert len(samples(fields)) == len(expected) and len(built) == 1  # another file replaces it
    write(known.slice(1))
    assert files() == set(known["path"].to_pylist()[1:]) and len(built) == 2


def test_a_data_set_of_hugging_face_gives_the_samples_of_its_files(media, tmp_path):
    datasets = pytest.importorskip("datasets")
    photos = [name for name in listed(media) if name.endswith(".jpg")]
    (tmp_path / "photos").mkdir()
    for name in photos:
        shutil.copy(media / name, tmp_path / "photos")  # the library keeps the names without their folders
    rows = {
        "image": [{"bytes": (media / name).read_bytes(), "path": name} for name in photos],
        "source": photos,
    }
    features = datasets.Features({"image": datasets.Image(), "source": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    fields = {"kind": "huggingface", "name": str(tmp_path / "saved")}

    def drawn(fields):
        data = settings(fields)
        sources = open_sources(data)
        frames = list(pipeline.train_samples(sources, PHOTOS, data, 6, seed=3))
        return frames + [batch.frames for batch in pipeline.eval_batches(sources, PHOTOS, data, 4)]

    assert_same(drawn(fields), drawn({"kind": "media", "path": str(tmp_path / "photos")}))
    (source,) = open_sources(settings(fields | {"filter": "source like 'deep/%'"}))
    assert len(source.table) == 5
    with pytest.raises(InputError, match="0 columns of photos or clips; accepted"):
        open_sources(settings(fields | {"column": "source"}))
    with pytest.raises(InputError, match="accepted: name = a data set"):
        open_sources(settings({"kind": "huggingface"}))


def test_large_row_groups_are_copied_once(media, places, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(parquet, "LARGEST_GROUP", 10_000)
    as_parquet(media, tmp_path / "large", group=100)
    fields = {"kind": "parquet", "path": str(tmp_path / "large")}
    assert_same(samples(fields), samples(places["media"]))
    copies = list((tmp_path / "vaejax" / "parquet").iterdir())
    assert len(copies) == 2 and capsys.readouterr().err.count("copying 0.parquet") >= 1
    written = [copy.stat().st_mtime_ns for copy in copies]
    parquet._column_of.cache_clear()
    samples(fields)
    assert [copy.stat().st_mtime_ns for copy in copies] == written


def test_shards_are_packed_from_and_into_a_bucket(places, media, tmp_path, gcs):
    expected = samples(places["media"])
    fsspec.filesystem("gs", skip_instance_cache=True).put(str(media), f"{gcs}/packed/media", recursive=True)
    arguments = [
        f"--media={gcs}/packed/media",
        f"--out={gcs}/packed/shards",
        "--shard-mb=0.02",
        "--workers=1",
    ]
    assert prepare.main(arguments) == 0
    assert_same(samples({"kind": "array_record", "path": f"{gcs}/packed/shards"}), expected)
    assert not [
        path for path in fsspec.filesystem("gs").find(f"{gcs}/packed/shards") if "record.parquet" in path
    ]
    assert prepare.main(arguments) == 2  # complete shards are not replaced


def test_an_interrupted_scan_of_a_tar_loses_no_file(places, tmp_path, monkeypatch):
    shutil.copy(pathlib.Path(places["webdataset"]["path"], "00000.tar"), tmp_path)
    collection = webdataset.Tars(str(tmp_path))
    probe_files = index.probe_files

    def interrupted(*arguments):
        yield from list(probe_files(*arguments))[:1]
        raise KeyboardInterrupt

    monkeypatch.setattr(index, "probe_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.load_or_build(collection, 1, progress=False)
    monkeypatch.setattr(index, "probe_files", probe_files)
    table = index.load_or_build(collection, 1, progress=False)
    assert len(table) == 5 and table["error"].null_count == 5


def test_threads_may_read_one_parquet_file_of_a_bucket(tmp_path):
    """In a process of its own, because Arrow would crash."""
    code = (
        "import sys, pyarrow as pa, pyarrow.parquet as pq\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from vaejax.data.kinds import parquet\n"
        "from vaejax.runtime import content, storage\n"
        "path, contents = sys.argv[1], [bytes([row]) * 3000 for row in range(60)]\n"
        "pq.write_table(pa.table({'media': contents}), path, row_group_size=3)\n"
        # As for a URL, and not memory-mapped.
        "parquet._open = lambda place: content.Part(place, 0, storage.entry(place).size).open()\n"
        "column = parquet._Column(path, 'media')\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    assert list(pool.map(column.read, [*range(60)] * 300)) == contents * 300\n"
    )
    path = tmp_path / "media.parquet"
    subprocess.run([sys.executable, "-c", code, path], check=True)


def test_a_torn_tar_gives_the_files_before_the_damage(places, tmp_path, capsys):
    whole = pathlib.Path(places["webdataset"]["path"], "00000.tar").read_bytes()
    (tmp_path / "torn.tar").write_bytes(whole[: len(whole) // 2])
    (source,) = open_sources(settings({"kind": "webdataset", "path": str(tmp_path)}))
    assert 0 < len(source.table) < 5
    ((path, reason),) = source.unreadable
    assert path == str(tmp_path / "torn.tar") and reason.startswith("damaged tar: ")
    assert "torn.tar: damaged tar: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"kind": "parquet", "path": "PARQUET", "column": "no"}, "no column 'no'; accepted: column = media"),
        ({"kind": "webdataset", "path": "MEDIA"}, "accepted: a folder with .tar files"),
        ({"kind": "manifest", "path": "MEDIA"}, "accepted: a .csv, .jsonl, .json, .parquet file"),
        ({"kind": "manifest", "path": "no.csv"}, "no.csv: no such file"),
        ({"kind": "media", "path": "ftp://x/y"}, "unknown scheme ftp://; accepted: gs://, s3://, or a path"),
    ],
)
def test_a_wrong_source_gets_one_line(places, fields, part):
    path = {"PARQUET": places["parquet"]["path"], "MEDIA": places["media"]["path"]}.get(fields["path"])
    with pytest.raises(InputError) as error:
        open_sources(settings(fields | ({"path": path} if path else {})))
    message = str(error.value)
    assert message.startswith("data.sources.mine.path = ") and "\n" not in message and part in message, (
        message
    )


@pytest.mark.parametrize("store", ["gcs", "s3"])
def test_a_missing_bucket_gets_one_line(store, request):
    scheme = request.getfixturevalue(store).partition("://")[0]
    url = f"{scheme}://nowhere/media"
    with pytest.raises(InputError) as error:
        open_sources(settings({"kind": "media", "path": url}))
    message = str(error.value)
    assert message.startswith(f"data.sources.mine.path = {url}: no such") and "\n" not in message, message
