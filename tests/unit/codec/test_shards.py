"""Latents in tars and Parquet files: what other trainers read, what is kept, refused and encoded again."""

import csv
import io
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.support import codec_run
from tests.support.codec_run import OLD, pan, run
from tests.support.media_files import write_clip
from tests.unit.data.test_collections import as_parquet, as_tars, labels_of
from tests.unit.test_readme import block
from vaejax.codec.shards import formats
from vaejax.data import index_file, order, prepare
from vaejax.data.kinds.collection import Folder
from vaejax.runtime import storage

SMALL = "--shard-mb=0.001"  # a photo of 32x48 has 192 bytes of latents
BROKEN = "error: 00000.tar/broken.png: not an image that Pillow can read"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return codec_run.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Six photos, three clips, one of them of variable rate, and a broken file."""
    folder = tmp_path_factory.mktemp("shards") / "media"
    (folder / "sub").mkdir(parents=True)
    for i, picture in enumerate(pan(6)):
        Image.fromarray(picture).save(folder / f"p{i}.png")
    for i in range(2):
        write_clip(folder / "sub" / f"c{i}.mp4", pan(9 + i))
    write_clip(folder / "sub" / "varies.mp4", pan(5), times=[0, 40, 120, 140, 300], tick=Fraction(1, 1000))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def tars(media):
    as_tars(media, media.parent / "tars")
    return media.parent / "tars"


@pytest.fixture(scope="module")
def source(tars):
    return json.dumps({"kind": "webdataset", "path": str(tars)})


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def made(model, media, source):
    """Folders of the three formats, and of the latent files of the same media in a folder."""
    folders = {name: media.parent / f"as-{name}" for name in ("latent", "webdataset", "parquet", "plain")}
    for name in ("latent", "webdataset", "parquet"):
        assert run(model, "encode", source, folders[name], f"--format={name}", SMALL) == 2  # of broken.png
    assert run(model, "encode", media, folders["plain"]) == 2
    return folders


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and ".records" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def members(folder):
    """The content of each member of the tars, in order."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def test_a_collection_gives_the_latent_files_of_its_folder(made):
    loose = contents(made["plain"])
    assert len(loose) == 9
    assert {name.split("/", 1)[1]: data for name, data in contents(made["latent"]).items()} == loose


def test_tars_have_the_latents_captions_and_labels(made, media):
    found = members(made["webdataset"])
    names = [path.split("/", 1)[1] for path in contents(made["latent"])]
    assert len(found) == 3 * len(names)
    by_name = {name.split("/", 1)[1]: content for name, content in found.items()}
    for name in names:
        file, key = name.removesuffix(".latent"), name.split(".")[0]
        stored = load_file(made["plain"] / name)
        latent = np.load(io.BytesIO(by_name[f"{key}.latent.npy"]))
        np.testing.assert_array_equal(latent, stored["latent"], strict=True)
        described = json.loads(by_name[f"{key}.json"])
        facts = described.pop("vaejax")
        assert described == labels_of(file) | {"caption": f"a picture of {file}"}
        assert by_name[f"{key}.txt"].decode() == f"a picture of {file}"
        assert facts["mean"] == pytest.approx([0.1, -0.2, 0.3, 0.0]) and facts["frames"] == len(
            stored["time"]
        )
        if facts["variable_rate"]:
            assert facts["time"] == stored["time"].tolist() and file == "sub/varies.mp4"


def test_shards_are_bounded_and_in_the_order_of_a_hash(made):
    tars = sorted(made["webdataset"].glob("*.tar"))
    sizes = []
    for path in tars:
        with tarfile.open(path) as tar:
            sizes.append([m.size - 128 for m in tar if m.name.endswith(".npy")])
    assert len(tars) > 1
    for shard in sizes[:-1]:
        assert sum(shard) >= 1000 > sum(shard[:-1])
    paths = [json.loads(c)["vaejax"]["path"] for n, c in members(made["webdataset"]).items() if "json" in n]
    assert paths == sorted(paths, key=order.key)
    described = json.loads((made["webdataset"] / "latents.json").read_bytes())
    assert described["complete"] and described["files"] == 9 and described["shards"] == len(tars)


def test_parquet_files_have_the_same_as_columns(made):
    tables = [pq.read_table(path) for path in sorted(made["parquet"].glob("*.parquet"))]
    assert len(tables) > 1 and all(table.schema.equals(tables[0].schema) for table in tables)
    rows = pa.concat_tables(tables).to_pylist()
    found = members(made["webdataset"])
    assert [row["key"] for row in rows] == [n.removesuffix(".txt") for n in found if n.endswith(".txt")]
    for row in rows:
        latent = np.load(io.BytesIO(found[f"{row['key']}.latent.npy"]))
        np.testing.assert_array_equal(
            np.frombuffer(row["latent"], row["dtype"]).reshape(row["shape"]), latent, strict=True
        )
        labels = json.loads(found[f"{row['key']}.json"])
        facts = labels.pop("vaejax")
        assert json.loads(row["vaejax"]) == facts
        assert {name: row[name] for name in labels} == labels
        assert {name: row[name] for name in ("kind", "frames", "height", "width")}.items() <= facts.items()


def shown(path, **names):
    """The code of a document, for smaller latents in the folders `names`, with what follows its loops."""
    found: dict = {"seen": []}
    code = block(*path).replace("batch_size=64", "batch_size=3").replace("1, 32, 32, 16", "1, 4, 6, 4")
    for name, folder in names.items():
        code = code.replace(f"{name.upper()}/", f"{folder}/")
    exec(code.replace("...  #", "seen.append(dict(locals()))  #"), found)
    return found


def test_the_readers_of_the_readme_read_them(made):
    pytest.importorskip("webdataset", reason="of the extra `test`")
    found = shown(("README.md", "webdataset"), tars=made["webdataset"], parquet=made["parquet"])
    loaded = {caption: latent for caption, latent in ((s["caption"], s["latent"]) for s in found["seen"])}
    assert len(loaded) == 9
    for caption, latent in loaded.items():
        name = caption.removeprefix("a picture of ")
        np.testing.assert_array_equal(latent, load_file(made["plain"] / f"{name}.latent")["latent"])
    name = found["caption"].removeprefix("a picture of ")  # of the last row
    np.testing.assert_array_equal(found["latent"], load_file(made["plain"] / f"{name}.latent")["latent"])


@pytest.mark.parametrize("reader", ["webdataset.WebDataset", "load_dataset"])
def test_the_readers_of_the_docs_give_batches(made, reader):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    pytest.importorskip("webdataset", reason="of the extra `test`")
    document = ("docs/latent-format.md", reader)
    found = shown(document, tars=made["webdataset"], parquet=made["parquet"])
    if reader == "load_dataset":
        batches = [step["batch"] for step in found["seen"]]
    else:
        batches = [{"latent": step["latents"], "caption": step["captions"]} for step in found["seen"]]
    captions = sorted(caption for batch in batches for caption in batch["caption"])
    assert captions == [f"a picture of p{i}.png" for i in range(6)]
    for batch in batches:
        assert batch["latent"].shape == (3, 1, 4, 6, 4) and isinstance(batch["latent"], torch.Tensor)
        for latent, caption in zip(batch["latent"], batch["caption"], strict=True):
            name = caption.removeprefix("a picture of ")
            stored = load_file(made["plain"] / f"{name}.latent")["latent"]
            np.testing.assert_array_equal(latent.numpy(), stored)


def test_only_missing_shards_are_encoded_again(made, model, source, tmp_path, capsys):
    out = tmp_path / "tars"
    shutil.copytree(made["webdataset"], out)
    first, *others = sorted(out.glob("*.tar"))
    before = contents(out)
    first.unlink()
    times = {path: path.stat().st_mtime_ns for path in others}
    capsys.readouterr()
    assert run(model, "encode", source, out, "--format=webdataset", SMALL, "--keep-going") == 0
    told = capsys.readouterr()
    with tarfile.open(first) as tar:
        again = sum(name.endswith("npy") for name in tar.getnames())
    assert told.out.startswith(f"{again} encoded, {9 - again} already there, 1 refused in ")
    assert BROKEN in told.err and told.err.endswith("refused: 00000.tar/broken.png\n")
    assert contents(out) == before and {path: path.stat().st_mtime_ns for path in others} == times
    (next((out / ".records").glob("*.tar.json"))).unlink()  # as if the command had been killed before it
    assert run(model, "encode", source, out, "--format=webdataset", SMALL, "--keep-going") == 0
    assert contents(out) == before
    larger = run(model, "encode", source, out, "--format=webdataset", "--keep-going")  # one shard
    assert larger == 0 and [path.name for path in out.glob("*.tar")] == ["latents-00000.tar"]
    assert sorted(members(out)) == sorted(members(made["webdataset"]))


def test_other_latents_are_not_replaced(made, model, source, tmp_path, capsys):
    def refused(*arguments):
        before = contents(made["webdataset"])
        assert run(model, "encode", source, *arguments, SMALL) == 2
        assert contents(made["webdataset"]) == before
        return capsys.readouterr().err.splitlines()[-1]

    tars, here = made["webdataset"], "--format=webdataset"
    assert "already encoded by a different model" in refused(tars, here, f"--step={OLD}")
    assert "already encoded with --dtype=float16 and no --seed" in refused(tars, here, "--dtype=float32")
    assert "accepted: --format=webdataset, or another OUT" in refused(tars, "--format=parquet")
    (tmp_path / "notes.txt").write_text("no latents")
    assert "not empty, but has no latents.json" in refused(tmp_path, here)
    assert "accepted: --runner=NAME" in refused(tmp_path / "x", here, "--shard=0/2")
    assert not (tmp_path / "x").exists()
    assert run(model, "decode", tars, tmp_path / "back", f"--step={OLD}") == 2
    assert "latents from a different model" in capsys.readouterr().err
    assert run(model, "decode", source, tmp_path / "back") == 2
    assert capsys.readouterr().err.startswith("error: decode: --runner, --format and IN as JSON are for")
    inside = json.loads(source)["path"] + "/latents"
    assert run(model, "encode", source, inside, here) == 2
    assert "in the folder IN; accepted: a folder outside it" in capsys.readouterr().err
    assert "accepted: --format=webdataset, or another OUT" in refused(tars)
    assert run(model, "encode", '{"kind": "none"}', tmp_path / "y", here) == 2
    assert 'IN = {"kind": "none"}; accepted: ' in capsys.readouterr().err


@pytest.mark.parametrize("name", ["webdataset", "parquet"])
def test_shards_are_decoded_as_latent_files_are(made, model, tmp_path, name):
    assert run(model, "decode", made[name], tmp_path / name) == 0
    assert run(model, "decode", made["latent"], tmp_path / "latent") == 0
    written = contents(tmp_path / name)
    assert written == contents(tmp_path / "latent") and len(written) == 9


def test_decoded_files_stay_in_the_folder(made, model, tmp_path, capsys):
    """Tars may come from elsewhere."""
    shutil.copytree(made["webdataset"], tmp_path / "tars")
    for tar in sorted((tmp_path / "tars").glob("*.tar"))[1:]:
        tar.unlink()
    (tar,) = (tmp_path / "tars").glob("*.tar")
    first, second, *_ = formats.read_tar(str(tar))
    places = [f"{tmp_path}/absolute.png", "../outside.png"]
    samples = [
        sample._replace(key=str(i), metadata=sample.metadata | {"path": place})
        for i, (sample, place) in enumerate(zip((first, second), places, strict=True))
    ]
    with open(tar, "wb") as file:
        formats.write_tar(file, samples)
    assert run(model, "decode", tmp_path / "tars", tmp_path / "back") == 2
    assert "error: ../outside.png: its path leads out of OUT" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*.png")] == ["absolute.png"]
    assert not (tmp_path / "absolute.png").exists()


def test_a_torn_shard_gets_one_line(made, model, tmp_path, capsys):
    shutil.copytree(made["parquet"], tmp_path / "torn")
    (tmp_path / "torn" / "latents-00000.parquet").write_bytes(b"PAR1 and no more")
    assert run(model, "decode", tmp_path / "torn", tmp_path / "back") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        line.startswith(f"error: {tmp_path}/torn/latents-00000.parquet: damaged (") and "accepted: " in line
    )


def test_a_bucket_gets_the_same_shards(made, model, source, s3):
    out = f"{s3}/latents"
    assert run(model, "encode", source, out, "--format=parquet", SMALL, "--keep-going") == 0
    stored = {entry.path: storage.read(f"{out}/{entry.path}") for entry in storage.walk(out, "OUT")}
    assert stored == contents(made["parquet"])


def test_a_folder_in_a_bucket_gives_the_same_latent_files(made, media, model, tmp_path, s3):
    storage.file_system(s3).put(str(media), f"{s3}/media", recursive=True)
    assert run(model, "encode", f"{s3}/media", tmp_path / "out", "--keep-going") == 0
    assert contents(tmp_path / "out") == contents(made["plain"])


def test_paths_of_a_manifest_stay_in_the_folder(media, model, tmp_path, capsys):
    """They may be absolute, or lead out of the manifest's folder."""
    (tmp_path / "lists").mkdir()
    shutil.copy(media / "p1.png", tmp_path / "p1.png")
    with open(tmp_path / "lists" / "list.csv", "w") as file:
        csv.writer(file).writerows([["path", "score"], [media / "p0.png", 1], ["../p1.png", 2]])
    manifest = json.dumps({"kind": "manifest", "path": f"{tmp_path}/lists/list.csv"})
    assert run(model, "encode", manifest, tmp_path / "lists" / "out") == 2
    assert "error: ../p1.png: its path leads out of OUT" in capsys.readouterr().err
    assert [*contents(tmp_path / "lists" / "out")] == [f"{media}/p0.png.latent".lstrip("/")]
    assert not list(tmp_path.glob("*.latent"))


def test_a_changed_caption_is_carried_over(media, model, tmp_path):
    for caption in ("a cat", "a dog"):
        labels = {"path": str(media / "p0.png"), "caption": caption}
        (tmp_path / "list.jsonl").write_text(json.dumps(labels) + "\n")
        manifest = json.dumps({"kind": "manifest", "path": f"{tmp_path}/list.jsonl"})
        assert run(model, "encode", manifest, tmp_path / "out", "--format=parquet") == 0
        (row,) = pq.read_table(tmp_path / "out" / "latents-00000.parquet").to_pylist()
        assert row["caption"] == caption


def test_a_file_that_cannot_be_read_for_now_is_tried_again(media, model, tmp_path, monkeypatch, capsys):
    """If a disk or bucket fails, the shard is written without the file, and later encoded again."""
    folder = tmp_path / "media"
    folder.mkdir()
    for i in range(2):
        shutil.copy(media / f"p{i}.png", folder)
    out, whole = tmp_path / "out", Folder.content_of

    def failing(self, row):
        if row["path"] == "p0.png":
            raise OSError(5, "Input/output error")
        return whole(self, row)

    assert run(model, "encode", folder, tmp_path / "first", "--format=webdataset") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "content_of", failing)
        assert run(model, "encode", folder, out, "--format=webdataset") == 2
    assert "p0.png: OSError: [Errno 5]" in capsys.readouterr().err and len(members(out)) == 2
    assert run(model, "encode", folder, out, "--format=webdataset") == 0
    assert members(out) == members(tmp_path / "first") and len(members(out)) == 4


@pytest.mark.parametrize("kind", ["array_record", "parquet"])
def test_other_collections_give_the_same_latents(made, media, model, tmp_path, kind):
    path, out = str(tmp_path / "source"), tmp_path / "tars"
    if kind == "array_record":
        prepare.pack(media, path, progress=False)
    else:
        as_parquet(media, pathlib.Path(path))
    fields = json.dumps({"kind": kind, "path": path})
    assert run(model, "encode", fields, out, "--format=webdataset", "--keep-going") == 0
    latents = {c for name, c in members(out).items() if name.endswith(".npy")}
    assert latents == {c for name, c in members(made["webdataset"]).items() if name.endswith(".npy")}


def test_ctrl_c_keeps_the_complete_shards(media, model, tmp_path):
    folder, out = tmp_path / "media", tmp_path / "tars"
    folder.mkdir()
    for i in range(200):
        shutil.copy(media / f"p{i % 6}.png", folder / f"{i}.png")
    command = ["-m", "vaejax.codec", "encode", folder, out, f"--model={model}", "--format=webdataset", SMALL]
    process = subprocess.Popen([sys.executable, *map(str, command)], stderr=subprocess.PIPE, text=True)
    while len(list(out.glob("latents-*.tar"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith("\nstopped; run the same command again to continue\n")
    assert "Traceback" not in errors and not json.loads((out / "latents.json").read_bytes())["complete"]
    records, tars = ({p.name for p in out.glob(f)} for f in (".records/*.tar.json", "*.tar"))
    assert {f"{name}.json" for name in tars} >= records and 3 <= len(records) < 30
    assert not list(out.glob(".*.part"))


def test_keys_are_unique_and_have_no_dots():
    paths = ["a.jpg", "b/a.tar.gz.jpg", "a.png", "a_png", "a.PNG", "c.parquet/3", "a_png.x", "a.b/c.d"]
    found = formats.keys(paths)
    assert found[:3] == ["a", "b/a_tar_gz", "a_png"] and found[5] == "c.parquet/3" and found[7] == "a.b/c"
    assert len(set(found)) == len(found) and not any("." in pathlib.PurePath(key).name for key in found)


def test_half_a_surrogate_pair_is_replaced(made):
    """JSON can hold it, UTF-8 cannot."""
    path = sorted(made["parquet"].glob("*.parquet"))[0]
    (sample, *_) = formats.read(str(path), "")
    sample = sample._replace(labels={"caption": "a \ud83d"})
    tar, parquet = io.BytesIO(), io.BytesIO()
    formats.write_tar(tar, [sample])
    formats.write_parquet(parquet, [sample], (("caption", "string"),))
    tar.seek(0)
    with tarfile.open(fileobj=tar) as read:
        assert read.extractfile(f"{sample.key}.txt").read() == b"a ?"
        assert json.load(read.extractfile(f"{sample.key}.json"))["caption"] == "a ?"
    assert pq.read_table(parquet)["caption"].to_pylist() == ["a ?"]


def test_labels_become_columns_of_one_type(tmp_path):
    labels = [
        {"score": 1, "flag": True, "text": "a", "mixed": 1, "deep": {"x": 1}, "none": None, "key": "k"},
        {"score": 2.5, "flag": None, "mixed": "b", "big": 2**70, "ok": False},
        None,
    ]
    rows = [{"path": f"{i}", "labels": json.dumps(one)} for i, one in enumerate(labels) if one] + [
        {"path": "2"}
    ]
    index_file.save(pa.Table.from_pylist(rows, index_file.SCHEMA), str(tmp_path / "index.parquet"))
    columns = formats.label_columns(str(tmp_path / "index.parquet"))
    assert dict(columns) == {
        "score": "double", "flag": "bool", "text": "string", "mixed": "string", "deep": "string",
        "none": "string", "key": "string", "big": "string", "ok": "bool",
    }  # fmt: skip
    assert "labels.key" in formats.schema(columns).names
