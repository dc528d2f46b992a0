"""The step guard counts skipped updates and rollbacks, over resumes."""

import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.config.schema import RecoveryConfig
from vaejax.data.pipeline import Batch
from vaejax.errors import TrainingFailed
from vaejax.rundir.folder import RunFolder
from vaejax.train.guard import Pending, StepGuard


def batch(*names):
    return Batch(np.zeros((len(names), 1, 8, 8, 3), np.uint8), range(len(names)), list(names), [])


def pending(step, finite, name="a.png@0.000"):
    terms = {"image_8x8": {"finite": jnp.array(finite)}, "all": {"finite": jnp.array(finite)}}
    return Pending(step, {"image_8x8": batch(name)}, terms)


def test_counts_are_right_after_a_resume(tmp_path):
    folder, config = RunFolder(tmp_path), RecoveryConfig()
    guard = StepGuard(folder, config, 0)
    for step, finite in enumerate([True, False, True, False, False]):
        guard.check(pending(step, finite))
    assert (guard.total, guard.in_row, guard.rollbacks) == (3, 2, 0)
    with open(folder.bad_steps, "a") as file:
        file.write('{"torn')
    again = StepGuard(folder, config, 5)
    assert (again.total, again.in_row, again.rollbacks) == (3, 2, 0)
    earlier = StepGuard(folder, config, 4)  # resumed from step 4: step 4 itself will be met again
    assert (earlier.total, earlier.in_row) == (2, 1)
    earlier.roll_back(4, 2, {"image_8x8": 9})
    assert (earlier.restart_step, earlier.in_row) == (2, 0)
    resumed = StepGuard(folder, config, 2)
    assert (resumed.total, resumed.in_row, resumed.rollbacks) == (2, 0, 1)
    assert resumed.positions(2, {}) == {"image_8x8": 9} and resumed.positions(4, {}) == {}
    resumed.check(pending(3, False, "b.png@0.000"))
    assert StepGuard(folder, config, 4).total == 3 and StepGuard(folder, config, 4).in_row == 1
    assert StepGuard(folder, config, 3).total == 2


def test_only_the_buckets_that_are_not_finite_are_recorded(tmp_path):
    guard = StepGuard(RunFolder(tmp_path), RecoveryConfig(bad_steps=2), 0)
    bad, good = {"finite": jnp.array(False)}, {"finite": jnp.array(True)}
    batches = {"image_8x8": batch("a@0"), "image_8x16": batch("b@0")}
    guard.check(Pending(0, batches, {"image_8x8": bad, "image_8x16": good, "all": bad}))
    assert not guard.must_roll_back
    guard.check(Pending(1, batches, {"image_8x8": good, "image_8x16": good, "all": bad}))  # their sum is not
    assert guard.must_roll_back
    one, both = (tmp_path / "bad_steps.jsonl").read_text().splitlines()
    assert "a@0" in one and "b@0" not in one and "a@0" in both and "b@0" in both


def test_a_run_fails_after_too_many_rollbacks_to_one_checkpoint(tmp_path):
    guard = StepGuard(RunFolder(tmp_path), RecoveryConfig(rollbacks=2), 0)
    for back_to in (4, 4, 8):
        guard.roll_back(9, back_to, {})
    with pytest.raises(TrainingFailed, match=r"after 2 rollbacks .* to step 4"):
        guard.roll_back(9, 4, {})
    guard.roll_back(9, 8, {})
