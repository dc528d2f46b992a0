"""The index describes the files of a folder, reads each once, and copes with broken ones."""

import errno
import itertools
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support import media_files
from vaejax.data import clip, index, index_file, media, order, scan
from vaejax.data.kinds.collection import Folder
from vaejax.data.kinds.webdataset import Tars
from vaejax.errors import InputError
from vaejax.runtime import cache as caches


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    media_files.make(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vaejax" / "index"


@pytest.fixture
def folder(tmp_path, made):
    """A few photos and clips, one of them broken, in a tree."""
    folder = tmp_path / "media"
    (folder / "deep" / "er").mkdir(parents=True)
    for name, place in (
        ("photo.webp", "."),
        ("quality_5.jpg", "deep"),
        ("three_frames.mp4", "deep/er"),
        ("text.mp4", "."),
    ):
        shutil.copy(made / name, folder / place / name)
    return folder


@pytest.fixture
def probed(monkeypatch):
    """The paths that are scanned."""
    seen, probe_files = [], index.probe_files

    def watched(root, files, *arguments):
        seen.extend(file["path"] for file in files)
        return probe_files(root, files, *arguments)

    monkeypatch.setattr(index, "probe_files", watched)
    return seen


def build(folder, **options):
    rows = index.load_or_build(folder, workers=1, progress=False, **options).to_pylist()
    return {row["path"]: row for row in rows}


def test_every_file_has_an_entry(made):
    rows = build(made)
    assert sorted(rows) == sorted(name for name in os.listdir(made) if not name.startswith("."))
    assert {name for name, row in rows.items() if row["error"]} == media_files.UNREADABLE
    assert (
        rows["rotated_90.mp4"] | {"kind": "video", "width": 64, "height": 96, "frames": 10}
        == rows["rotated_90.mp4"]
    )
    for name, row in rows.items():
        assert row["size"] == os.path.getsize(made / name)
        assert (row["width"] is None) == (name in media_files.UNREADABLE)


def test_paths_are_relative_and_posix_and_the_table_is_kept(folder):
    table = index.load_or_build(folder, workers=2, progress=False)
    names = ["deep/er/three_frames.mp4", "deep/quality_5.jpg", "photo.webp", "text.mp4"]
    assert table.column("path").to_pylist() == sorted(names, key=order.key)
    assert table.equals(pq.read_table(folder / index.INDEX_FILE))
    assert table.schema.equals(index.SCHEMA)


def test_only_what_changed_is_scanned_again(folder, probed):
    build(folder)
    assert len(probed) == 4
    probed.clear()
    stored = os.stat(folder / index.INDEX_FILE)
    first = build(folder)
    assert probed == [] and os.stat(folder / index.INDEX_FILE).st_mtime_ns == stored.st_mtime_ns
    Image.new("RGB", (10, 20)).save(folder / "photo.webp")
    Image.new("RGB", (30, 40)).save(folder / "new.png")
    os.remove(folder / "text.mp4")
    second = build(folder)
    assert probed == ["new.png", "photo.webp"]
    assert "text.mp4" not in second and second["photo.webp"]["width"] == 10
    assert second["deep/quality_5.jpg"] == first["deep/quality_5.jpg"]


def test_hidden_and_other_files_are_ignored(folder):
    shutil.copy(folder / "photo.webp", folder / ".hidden.webp")
    shutil.copytree(folder / "deep", folder / ".hidden")
    (folder / "notes.txt").write_text("no media")
    os.mkfifo(folder / "pipe.mp4")
    assert len(build(folder)) == 4


def test_files_that_are_passed_over_are_counted_by_their_endings(folder, tmp_path, capsys):
    for name in ("a.txt", "deep/B.TXT", "c.psd", "README", ".hidden.txt"):
        (folder / name).write_bytes(b"")
    index.load_or_build(folder, workers=1)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "passed over by their endings: 2 .txt, 1 .psd, 1 without an ending"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jxl").write_bytes(b"")
    with pytest.raises(InputError, match=r"in it; passed over by their endings: 1 \.jxl; accepted: "):
        build(tmp_path / "other")


def test_endings_are_counted_with_the_rest_as_others():
    assert media.passed_over(index.Counter()) == []
    counts = index.Counter({f".{i}": 10 - i for i in range(10)})
    assert media.passed_over(counts) == [
        "passed over by their endings: 10 .0, 9 .1, 8 .2, 7 .3, 6 .4, 5 .5, 4 .6, 3 .7, 3 others"
    ]


def test_linked_folders_are_followed_once(folder, tmp_path, made):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(made / "photo.webp", elsewhere / "linked.webp")
    os.symlink(elsewhere, folder / "one")
    os.symlink(elsewhere, folder / "two")
    os.symlink(folder, folder / "deep" / "round")
    os.symlink(folder / "gone.png", folder / "dangling.png")
    found = [path for path in build(folder) if path.endswith("linked.webp")]
    assert found == ["one/linked.webp"] and len(build(folder)) == 5


def test_a_name_that_is_not_utf8_is_reported(folder):
    try:
        shutil.copy(folder / "photo.webp", os.fsencode(folder) + b"/caf\xe9.webp")
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    assert build(folder)["caf\ufffd.webp"]["error"] == "the file's name is not UTF-8"


@pytest.mark.parametrize("shared", [False, True], ids=["its own", "its run's"])
def test_a_folder_that_cannot_be_written_is_kept_in_the_cache(
    folder, cache, probed, tmp_path, monkeypatch, shared
):
    """The hosts of a run share the scan of the first."""
    if shared:
        monkeypatch.setattr(caches, "_of_run", None)
        caches.share(str(tmp_path / "run"))
        cache = tmp_path / "run" / "cache" / "index"
    write = pq.write_table

    def refuse(table, file, **options):
        if str(file.name).startswith(str(folder)):
            raise PermissionError(13, "Permission denied")
        write(table, file, **options)

    monkeypatch.setattr(pq, "write_table", refuse)
    rows = build(folder)
    assert not (folder / index.INDEX_FILE).exists() and len(list(cache.iterdir())) == 1
    probed.clear()
    assert build(folder) == rows and probed == []


def test_a_write_that_fails_leaves_the_old_index(folder, monkeypatch, capsys):
    build(folder)
    before = (folder / index.INDEX_FILE).read_bytes()
    os.remove(folder / "text.mp4")

    def half(table, file, **options):
        file.write(b"PAR1 half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", half)
    assert len(build(folder)) == 3
    assert (folder / index.INDEX_FILE).read_bytes() == before
    assert [name for name in os.listdir(folder) if name.endswith(".part")] == []
    assert "warning: the index cannot be saved: [Errno 28] No space left on device" in capsys.readouterr().err


def test_a_damaged_index_is_rebuilt(folder):
    rows = build(folder)
    (folder / index.INDEX_FILE).write_bytes(b"PAR1 not really")
    assert build(folder) == rows


def test_an_interrupted_scan_continues_where_it_stopped(folder, probed, monkeypatch):
    probe_files = index.probe_files

    def interrupted(*arguments):
        yield from list(probe_files(*arguments))[:3]
        raise KeyboardInterrupt

    monkeypatch.setattr(index, "probe_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(folder)
    monkeypatch.setattr(index, "probe_files", probe_files)
    probed.clear()
    assert len(build(folder)) == 4 and len(probed) == 1


def test_a_decoder_that_crashes_costs_one_file(folder, monkeypatch):
    start = scan.Decoder._start

    def deadly(worker):
        """The process dies at text.mp4, as in a decoder."""
        process = start(worker)
        ask = process.stdin.write

        def write(line):
            if "text.mp4" in line:
                process.send_signal(signal.SIGKILL)
                process.wait()
            return ask(line)

        monkeypatch.setattr(process.stdin, "write", write, raising=False)
        return process

    monkeypatch.setattr(scan.Decoder, "_start", deadly)
    rows = build(folder)
    assert rows["text.mp4"]["error"] == "the decoder crashed (signal 9)"
    assert sum(row["error"] is None for row in rows.values()) == 3
    monkeypatch.setattr(scan.Decoder, "_start", start)
    assert build(folder)["text.mp4"]["error"] == "Invalid data found when processing input"


def test_a_file_that_could_not_be_opened_once_is_read_the_next_time(folder, monkeypatch):
    probe_files = index.probe_files

    def hidden(root, files, *arguments):
        os.rename(folder / "photo.webp", folder / "elsewhere")
        yield from probe_files(root, files, *arguments)
        os.rename(folder / "elsewhere", folder / "photo.webp")

    monkeypatch.setattr(index, "probe_files", hidden)
    assert build(folder)["photo.webp"]["error"] == "No such file or directory"
    monkeypatch.setattr(index, "probe_files", probe_files)
    assert build(folder)["photo.webp"]["error"] is None


@pytest.mark.parametrize("name", ["photo.webp", "deep/er/three_frames.mp4", "deep/quality_5.jpg"])
def test_too_many_open_files_is_no_fault_of_a_file(folder, name):
    kind = media.kind_of(name)
    sound = media.probe(folder / name, kind)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(media.Unavailable, match="Too many open files"):
            media.probe(folder / name, kind)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert media.probe(folder / name, kind) == sound


def test_a_missing_permission_is_not_remembered(folder):
    (folder / "photo.webp").chmod(0)
    if os.access(folder / "photo.webp", os.R_OK):
        pytest.skip("root may read every file")
    assert build(folder)["photo.webp"]["error"] == "Permission denied"
    (folder / "photo.webp").chmod(0o644)
    assert build(folder)["photo.webp"]["error"] is None


def test_a_file_system_that_fails_within_a_clip_does_not_shorten_it(folder, monkeypatch):
    """FFmpeg reports damage to some formats as an input error too; there, the file can be read otherwise."""
    path, frames_from = folder / "deep" / "er" / "three_frames.mp4", clip.frames_from

    def failing(file, start):
        yield from itertools.islice(frames_from(file, start), 2)
        raise av.error.OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(clip, "frames_from", failing)
    assert media.probe(path, "video")["frames"] == 2
    monkeypatch.setattr(clip, "frames_from", lambda *arguments: os.remove(path) or failing(stored, 0.0))
    stored = path.read_bytes()
    with pytest.raises(media.Unavailable, match="Input/output error"):
        media.probe(path, "video")


def stored_as(folder, version, change):
    """Stores an index that differs from the folder's own in its version and in some entries."""
    table = pq.read_table(folder / index.INDEX_FILE)
    rows = [change(row) for row in table.to_pylist()]
    schema = pa.schema([field for field in index.SCHEMA if field.name in rows[0]], {"vaejax.index": version})
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / index.INDEX_FILE)


def test_damage_is_remembered_until_the_decoders_change(folder, probed):
    first = build(folder)
    assert first["text.mp4"]["error"] and {row["reader"] for row in first.values()} == {media.reader()}
    probed.clear()
    build(folder)
    assert probed == []
    stored_as(folder, "5", lambda row: row | {"reader": "vaejax 0.0.1, PyAV 9.0.0"})
    second = build(folder)
    assert probed == ["text.mp4"] and second["text.mp4"] == first["text.mp4"]


SINCE_3 = ("scan", "cuts", "name", "shard", "position", "length", "labels")


@pytest.mark.parametrize("version, later", [("2", ("reader", *SINCE_3)), ("3", SINCE_3)])
def test_an_index_of_an_earlier_version_keeps_its_sound_files(folder, probed, version, later):
    """Their numbers are changed here, to show that they are not measured again."""
    build(folder)

    def older(row):
        row |= {"width": 7, "error": row["error"] and "no permission", "reader": "vaejax 0.0.1"}
        return {name: value for name, value in row.items() if name not in later}

    stored_as(folder, version, older)
    probed.clear()
    rows = build(folder)
    assert probed == ["text.mp4"] and rows["text.mp4"]["error"] == "Invalid data found when processing input"
    assert [rows[name]["width"] for name in sorted(rows)] == [7, 7, 7, None]
    assert pq.read_table(folder / index.INDEX_FILE).schema.equals(index.SCHEMA, check_metadata=True)


def test_a_full_scan_reads_again_what_only_the_headers_told(folder, probed):
    readable = ["deep/er/three_frames.mp4", "deep/quality_5.jpg", "photo.webp"]
    assert {build(folder, scan="headers")[path]["scan"] for path in readable} == {"headers"}
    probed.clear()
    build(folder, scan="headers")
    assert probed == []
    full = build(folder)
    assert probed == readable and {full[path]["scan"] for path in readable} == {"full"}
    probed.clear()
    assert build(folder, scan="headers") == full and probed == []


def test_a_full_scan_that_is_interrupted_keeps_what_the_headers_told(folder, probed, monkeypatch):
    build(folder, scan="headers")
    probe_files = index.probe_files

    def interrupted(*arguments):
        yield from list(probe_files(*arguments))[:1]
        raise KeyboardInterrupt

    monkeypatch.setattr(index, "probe_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(folder)
    monkeypatch.setattr(index, "probe_files", probe_files)
    probed.clear()
    scans = [row["scan"] for row in build(folder, scan="headers").values()]
    assert probed == [] and sorted(scan or "" for scan in scans) == ["", "full", "headers", "headers"]


def test_only_clips_whose_cuts_are_unknown_are_scanned_for_them(folder, probed):
    without = build(folder)
    assert {row["cuts"] for row in without.values()} == {None}
    probed.clear()
    rows = build(folder, with_cuts=True)
    assert probed == ["deep/er/three_frames.mp4"] and rows["deep/er/three_frames.mp4"]["cuts"] is not None
    assert rows["photo.webp"]["cuts"] is None and rows["text.mp4"] == without["text.mp4"]
    probed.clear()
    assert build(folder, with_cuts=True) == build(folder) == rows and probed == []
    assert pq.read_table(folder / index.INDEX_FILE).schema.equals(index.SCHEMA, check_metadata=True)


def test_a_better_index_in_the_cache_replaces_that_of_a_folder_that_cannot_be_written(
    folder, probed, monkeypatch
):
    build(folder, scan="headers")
    stored = (folder / index.INDEX_FILE).read_bytes()
    full = build(folder)
    shutil.copy(folder / index.INDEX_FILE, made_folder(index_file.places(Folder(str(folder)))[-1]))
    (folder / index.INDEX_FILE).write_bytes(stored)
    probed.clear()
    assert build(folder) == full and probed == []


def made_folder(path):
    """Creates the folder of a file, and returns its path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def test_nothing_to_index_is_an_input_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such folder; accepted: a folder with photos or clips"):
        build(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data\.media = .*no photos or clips"):
        build(tmp_path / "empty")


def run(*arguments):
    command = [sys.executable, "-m", "vaejax.data.index", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_ends_with_a_summary_and_the_next_command(folder, tmp_path):
    done = run(folder, "--out", tmp_path / "out.parquet", "--workers", 1)
    assert done.returncode == 0
    assert "2 photos, 1 clip (0 s), 1 unreadable" in done.stderr
    held_out, duration, following = done.stdout.splitlines()
    assert held_out == "held out for evaluation (data.holdout = 0.05): 1 photo, the last fifth of 1 clip"
    assert duration.startswith("done in ")
    assert following == (
        f"next: python -m vaejax.main --config=demo --workdir=runs/mine --config.data.media={folder}"
    )
    assert "text.mp4: Invalid data found when processing input" in done.stderr
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 4 and not (folder / index.INDEX_FILE).exists()


def test_the_command_indexes_any_collection(folder, tmp_path, probed):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as tar:
        for path in sorted(folder.rglob("*.*")):
            tar.add(path, path.name)
    source = json.dumps({"kind": "webdataset", "path": str(tmp_path / "tars")})
    done = run(source, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "2 photos, 1 clip (0 s), 1 unreadable" in done.stderr
    flag = shlex.split(done.stdout.splitlines()[-1])[-1]
    assert flag == f"--config.data.sources={json.dumps({'mine': json.loads(source)})}"
    assert len(build(Tars(str(tmp_path / "tars")))) == 4 and not probed  # the command read all of them
    failed = run('{"kind": "webdataset"}')
    assert failed.returncode == 2 and failed.stderr.startswith(
        'error: FOLDER = {"kind": "webdataset"}: 0 coll'
    )


def test_the_command_reports_an_input_error_in_one_line(tmp_path):
    failed = run(tmp_path / "nowhere")
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "no such folder" in failed.stderr
    failed = run(tmp_path, "--out", tmp_path)
    assert failed.returncode == 2 and "is a folder; accepted: a file" in failed.stderr
    failed = run(tmp_path, "--workers", -1)
    assert failed.returncode == 2 and "-1; accepted: a whole number of at least 1" in failed.stderr
    assert "example: python -m vaejax.data.index" in run("--help").stdout
