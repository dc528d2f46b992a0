"""--help of the commands that take --config."""

import subprocess
import sys

import pytest

from vaejax.config.flag import shipped_names


@pytest.mark.parametrize(("module", "flag"), [("vaejax.main", "--workdir"), ("vaejax.plan", "--topology")])
def test_help_lists_flags_and_configurations_and_exits_with_0(module, flag):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr
    for part in (f"python -m {module} --config=", "  --config: ", f"  {flag}: ", "docs/configuration.md"):
        assert part in done.stdout
    assert ", ".join(shipped_names()) in done.stdout
