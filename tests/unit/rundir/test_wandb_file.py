"""The last step in a .wandb file, wherever its records lie and wherever it is cut."""

import json
import struct
import zlib

import pytest

from tests.support import wandb_log
from vaejax.rundir.wandb_file import last_step


def row(step, size):
    """A serialized row of numbers of about `size` bytes."""
    record = wandb_log.Record()
    record.history.step.num = step
    record.history.item.add(nested_key=["a"], value_json=json.dumps("x" * size))
    return record.SerializeToString()


def log(rows):
    """A log in LevelDB's format: fragments of rows in blocks of 32 KiB, which zeros fill up."""
    data = bytearray(b":W&B\xe1\xbe\x00")
    for one in rows:
        first = True
        while first or one:
            left = 32768 - len(data) % 32768
            if left < 7:
                data += bytes(left)
                continue
            part, one = one[: left - 7], one[left - 7 :]
            kind = (1 if first else 4) if not one else (2 if first else 3)
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            first = False
    return bytes(data)


@pytest.mark.parametrize("left", range(9))
def test_a_row_is_found_on_either_side_of_the_end_of_a_block(tmp_path, left):
    size = 32768 - 7 - 7 - left - (len(row(1, 20_000)) - 20_000)
    data = log([row(1, size), row(2, 70_000), row(3, 10)])
    assert len(row(1, size)) + 14 + left == 32768  # so many bytes remain of the first block
    (tmp_path / "run.wandb").write_bytes(data)
    assert [step for step, _ in wandb_log.rows(wandb_log.records(tmp_path / "run.wandb"))] == [1, 2, 3]
    assert last_step(tmp_path / "run.wandb") == 3


def test_a_row_that_is_cut_does_not_count(tmp_path):
    rows = [row(step, 40) for step in (1, 2, 3)]
    data = log(rows)
    for length in range(len(data) + 1):
        (tmp_path / "run.wandb").write_bytes(data[:length])
        whole = sum(length >= len(log(rows[:n])) for n in (1, 2, 3))
        assert last_step(tmp_path / "run.wandb") == (whole or -1)
        (tmp_path / "run.wandb").write_bytes(data[:length].ljust(len(data), b"\0"))  # a power failure
        assert last_step(tmp_path / "run.wandb") == (whole or -1)


def test_another_file_holds_no_row(tmp_path):
    (tmp_path / "run.wandb").write_bytes(b":W&B\xe1\xbe\x01" + log([row(1, 10)])[7:])
    assert last_step(tmp_path / "run.wandb") == -1
