"""Runs vaejax.main with a lease and uploads that take part of a second, so that a test waits less."""

import runpy

from vaejax.rundir import lease, uploads

if __name__ == "__main__":
    lease.BEAT = uploads.EVERY = 0.5
    runpy.run_module("vaejax.main", run_name="__main__")
