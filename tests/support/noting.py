"""Runs vaejax.main and records the samples that each process trains on, in a file per process in $NOTED."""

import json
import os
import pathlib
import runpy

from vaejax.data import pipeline

_next = pipeline.TrainStream.__next__


def _noted(stream):
    update = _next(stream)
    path = pathlib.Path(os.environ["NOTED"]) / f"{os.environ.get('JAX_PROCESS_ID', '0')}.jsonl"
    with open(path, "a") as file:
        for bucket, batch in update.batches.items():
            line = [update.step, bucket, list(zip(batch.rows, batch.names, strict=True))]
            file.write(json.dumps(line) + "\n")
    return update


if __name__ == "__main__":
    pipeline.TrainStream.__next__ = _noted
    runpy.run_module("vaejax.main", run_name="__main__")
