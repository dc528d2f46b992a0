"""The setup builds the mesh, the buckets and the stream of batches of a configuration."""

import os

import pytest

from tests.support import media_files
from tests.support.small_run import BUCKET, small_config
from vaejax.data.bucket import parse_buckets
from vaejax.errors import InputError
from vaejax.evaluate import evaluation
from vaejax.rundir.folder import RunFolder
from vaejax.train.setup import Setup


def test_batches_continue_at_a_data_position(photos):
    setup = Setup.of(small_config(photos))
    assert [bucket.name for bucket in setup.buckets] == [BUCKET] and setup.mesh.size == 8
    with setup.batches(0, {}) as stream:
        from_start = [next(stream) for _ in range(4)]
    with setup.batches(1, {BUCKET: 3 * 8}) as stream:  # e.g. after a rollback: step 1 with the fourth batch
        resumed = next(stream)
    assert [update.step for update in from_start] == [0, 1, 2, 3] and resumed.step == 1
    names = [update.batches[BUCKET].names for update in from_start]
    assert resumed.batches[BUCKET].names == names[3] and names[3] not in names[:3]


def test_a_batch_that_the_mesh_does_not_divide_is_refused(photos):
    message = r"image_32x32\.batch = 9; accepted: multiples of mesh\.data x mesh\.fsdp = 8"
    with pytest.raises(InputError, match=message):
        Setup.of(small_config(photos, **{"data.buckets": {BUCKET: {"batch": 9}}}))


def test_a_run_and_its_evaluation_keep_the_split_of_a_growing_folder(tmp_path, capsys):
    """Of three photos the one with the lowest hash is held out; of many, those below data.holdout."""
    media, run = tmp_path / "media", RunFolder.create(str(tmp_path / "run"))
    media.mkdir()
    media_files.write_photos(media, 3)
    config = small_config(media)
    run.write_config(config)

    def sides(sources):
        (source,) = sources
        table = source.table.select(["path", "held_out"]).to_pylist()
        return {os.path.basename(row["path"]): row["held_out"] for row in table}

    first = sides(Setup.of(config, folder=run).sources)
    assert sum(first.values()) == 1 and "new" not in capsys.readouterr().err
    media_files.write_photos(media, 12)
    second = sides(Setup.of(config, folder=run).sources)
    assert "media: 9 photos are new: " in capsys.readouterr().err
    anew = sides(Setup.of(config).sources)
    assert {name: second[name] for name in first} == first != {name: anew[name] for name in first}
    assert sides(Setup.of(small_config(media, init=str(run.path))).sources) == second
    samples, _, (bucket,) = evaluation._samples([str(run.path)], "", 0, 0)
    (shape,) = parse_buckets({bucket: {"batch": 1}}, 1, 1)
    scored = {
        os.path.basename(name.rpartition("@")[0])
        for _, names, _ in samples.batches(shape, 8)
        for name in names
    }
    assert scored == {name for name, held_out in second.items() if held_out}
