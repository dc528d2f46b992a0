"""The setup builds the mesh, the buckets and the stream of batches of a configuration."""

import pytest

from tests.support.small_run import BUCKET, small_config
from vaejax.errors import InputError
from vaejax.train.setup import Setup


def test_batches_continue_at_a_data_position(photos):
    setup = Setup.of(small_config(photos))
    assert [bucket.name for bucket in setup.buckets] == [BUCKET] and setup.mesh.size == 8
    with setup.batches(0, {}) as stream:
        from_start = [next(stream) for _ in range(4)]
    with setup.batches(1, {BUCKET: 3}) as stream:  # e.g. after a rollback: step 1 with the fourth batch
        resumed = next(stream)
    assert [update.step for update in from_start] == [0, 1, 2, 3] and resumed.step == 1
    names = [update.batches[BUCKET].names for update in from_start]
    assert resumed.batches[BUCKET].names == names[3] and names[3] not in names[:3]


def test_a_batch_that_the_mesh_does_not_divide_is_refused(photos):
    with pytest.raises(InputError, match=r"image_32x32\.batch = 9; accepted: multiples of 8"):
        Setup.of(small_config(photos, **{"data.buckets": {BUCKET: {"batch": 9}}}))
