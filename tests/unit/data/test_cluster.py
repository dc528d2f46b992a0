"""Apache Beam makes the same index and shards as one machine, byte for byte, and continues after failures."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support import processes
from tests.unit.data.test_collections import as_tars
from vaejax.data import index, index_file, prepare
from vaejax.errors import InputError
from vaejax.runtime import beam

pytest.importorskip("apache_beam", reason="`beam` and `test` need different packages")
DIRECT = ["--runner=DirectRunner", "--direct_num_workers=2"]
IN_MEMORY = ["--runner=DirectRunner", "--direct_running_mode=in_memory"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """300 photos in 7 folders, and a broken one."""
    folder = tmp_path_factory.mktemp("cluster") / "media"
    rng = np.random.default_rng(0)
    for number in range(300):
        place = folder / f"{number % 7}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize((32, 24)).save(place)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def packed(source, out, *options):
    """The files that the command writes, without an earlier index."""
    (source / index.INDEX_FILE).unlink(missing_ok=True)
    assert prepare.main([f"--media={source}", f"--out={out}", "--shard-mb=0.02", *options]) == 0
    written = contents(out)
    assert len(written) > 10 and not list(out.parent.glob(".*"))
    assert [path.name for path in source.glob(".*")] == [index.INDEX_FILE]
    return written | {"the folder's": (source / index.INDEX_FILE).read_bytes()}


@pytest.mark.hosts
def test_processes_give_the_same_bytes(media, tmp_path):
    assert packed(media, tmp_path / "beam", *DIRECT) == packed(media, tmp_path / "plain")


@pytest.fixture(scope="module")
def dask_cluster():
    distributed = pytest.importorskip("distributed", reason="pip install 'apache-beam[dask]'")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.mark.hosts
def test_a_dask_cluster_gives_the_same_bytes(media, dask_cluster, tmp_path):
    as_tars(media, tmp_path / "tars", count=20)
    source = f'--source={{"kind": "webdataset", "path": "{tmp_path}/tars"}}'
    stored = tmp_path / "tars" / ".vaejax-index-webdataset.parquet"
    written = []
    for options in ([], ["--runner=DaskRunner", f"--dask_client_address={dask_cluster.scheduler_address}"]):
        out = tmp_path / f"shards{len(options)}"
        assert prepare.main([source, f"--out={out}", "--shard-mb=0.02", *options]) == 0
        written.append(contents(out) | {"stored": stored.read_bytes()})
        stored.unlink()
    assert written[0] == written[1] and len(written[0]) > 10


@pytest.mark.hosts
def test_dask_continues_without_a_killed_worker(media, dask_cluster, tmp_path, capsys):
    address = dask_cluster.scheduler_address
    started = threading.Event()

    def kill():
        while not list(tmp_path.rglob("part-*")):
            time.sleep(0.01)
        os.kill(next(iter(dask_cluster.workers.values())).pid, 9)
        started.set()

    threading.Thread(target=kill, daemon=True).start()
    out = tmp_path / "beam.parquet"
    options = ["--runner=DaskRunner", f"--dask_client_address={address}"]
    assert index.main([str(media), f"--out={out}", *options]) == 0
    assert started.is_set() and "300 photos" in capsys.readouterr().err
    assert index.main([str(media), f"--out={tmp_path}/plain.parquet"]) == 0
    assert out.read_bytes() == (tmp_path / "plain.parquet").read_bytes()


@pytest.mark.hosts
def test_a_killed_process_ends_the_command_with_one_line_and_the_next_one_continues(media, tmp_path):
    out = tmp_path / "beam.parquet"
    command = [sys.executable, "-m", "vaejax.data.index", str(media), f"--out={out}", *DIRECT]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (parts := list(tmp_path.rglob("part-*"))):
        time.sleep(0.01)
    workers = processes.beam_workers(process.pid)
    assert len(workers) == 2
    workers[0].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "error: --runner=DirectRunner: a worker process ended; the same command continues\n"
    stored = {path: path.stat().st_mtime_ns for path in parts}
    assert not out.exists() and all(path.exists() for path in stored)
    # Numbers in a complete part are changed, to show that its files are not measured again.
    table = index_file.load(str(parts[0]))
    rows = [row | {"width": row["width"] and 7} for row in table.to_pylist()]
    index_file.save(pa.Table.from_pylist(rows, index.SCHEMA), str(parts[0]))
    assert index.main([str(media), f"--out={out}", *IN_MEMORY]) == 0
    widths = dict(zip(*(pq.read_table(out)[name].to_pylist() for name in ("path", "width")), strict=True))
    changed = {row["path"] for row in rows if row["width"]}
    assert {path for path, width in widths.items() if width == 7} == changed
    assert len(widths) == 301 and not list(tmp_path.glob(".*parts"))


def test_a_manifest_gives_the_same_bytes(media, tmp_path):
    """Its index has no place beside it."""
    listed = "".join(f"{path},{path.stem}\n" for path in sorted(media.glob("0/*"))[:9])
    (tmp_path / "list.csv").write_text(f"path,number\n{listed}/no/such.png,0\n")
    source = f'--source={{"kind": "manifest", "path": "{tmp_path}/list.csv"}}'
    for out, options in (("plain", []), ("beam", IN_MEMORY)):
        assert prepare.main([source, f"--out={tmp_path}/{out}", "--shard-mb=0.002", *options]) == 0
    written = contents(tmp_path / "plain")
    assert written == contents(tmp_path / "beam") and len(written) > 3 and not list(tmp_path.glob(".*"))


def test_only_new_files_are_scanned(media, tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    for path in sorted(media.glob("0/*"))[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    table = index.load_or_build(folder, 1, progress=False)
    rows = [row | {"width": 7} for row in index_file.load(str(folder / index.INDEX_FILE)).to_pylist()]
    index_file.save(pa.Table.from_pylist(rows, index.SCHEMA), str(folder / index.INDEX_FILE))
    removed, *_ = table["path"].to_pylist()
    (folder / removed).unlink()
    Image.new("RGB", (10, 20)).save(folder / "new.png")
    assert index.main([str(folder), *IN_MEMORY]) == 0
    stored = pq.read_table(folder / index.INDEX_FILE)
    widths = dict(zip(stored["path"].to_pylist(), stored["width"].to_pylist(), strict=True))
    assert widths.pop("new.png") == 10
    assert set(widths.values()) == {7} and len(widths) == 4 and removed not in widths


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runner=DirectRunner", "--num_wrkers=3"], "--num_wrkers: Beam has no such option; accepted: "),
        (["--runner=NoRunner"], "--runner=NoRunner: Beam has no such runner; accepted: DirectRunner, "),
        (["--runner=DirectRunner", "--direct_num_workers=x"], "--direct_num_workers: invalid int value: 'x'"),
    ],
)
def test_wrong_options_get_one_line(options, message):
    with pytest.raises(InputError) as error:
        beam.run(options, print)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_error_of_a_worker_is_one_line(media, tmp_path, monkeypatch, capsys):
    """A file that vanishes between the scan and the packing."""
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "gone.png").write_bytes((media / "0" / "0.png").read_bytes())
    plan = prepare.shards.plan

    def vanish(*arguments):
        (folder / "gone.png").unlink()
        return plan(*arguments)

    monkeypatch.setattr(prepare.shards, "plan", vanish)
    assert prepare.main([f"--media={folder}", f"--out={tmp_path}/out", *IN_MEMORY]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: --runner=DirectRunner: {folder}/gone.png: No such file or directory; acc")


def test_a_folder_without_media_gets_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no media")
    assert index.main([str(tmp_path), *IN_MEMORY]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: FOLDER = {tmp_path}: no photos or clips in it; passed over by their endings"
    )
