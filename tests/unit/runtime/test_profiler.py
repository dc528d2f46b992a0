"""Traces: the updates in them, read back from the files of XProf."""

import jax
import jax.numpy as jnp
import pytest

from vaejax.runtime.profiler import Profile


def traced(folder):
    """The step numbers of the updates in the traces of a folder, and the programs that ran."""
    steps, programs = [], set()
    for path in sorted(folder.rglob("*.xplane.pb")):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name == "update":
                        steps += [value for name, value in event.stats if name == "step_num"]
                    programs |= {str(value) for name, value in event.stats if name == "hlo_module"}
    return sorted(steps), programs


def run(profile, steps):
    @jax.jit
    def doubled(x):
        return x @ x * 2

    x = jnp.ones((64, 64)) / 64
    with profile:
        for step in steps:
            with profile.update(step):
                x = doubled(x)
            profile.done(step, x)


@pytest.mark.parametrize(
    ("updates", "steps", "expected"),
    [
        pytest.param((2, 3), range(7), [2, 3, 4], id="within a run"),
        pytest.param((2, 3), range(3, 7), [3, 4], id="resumed within the range"),
        pytest.param((2, 3), range(4), [2, 3], id="a run that ends first"),
        pytest.param((0, 0), range(3), [], id="disabled"),
    ],
)
def test_a_trace_holds_the_chosen_updates_and_their_programs(tmp_path, updates, steps, expected):
    run(Profile(tmp_path, updates), steps)
    found, programs = traced(tmp_path)
    assert found == expected
    assert any("doubled" in name for name in programs) == bool(expected)


def test_other_processes_write_no_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run(Profile(tmp_path, (0, 2)), range(3))
    assert not list(tmp_path.rglob("*"))
