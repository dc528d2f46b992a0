"""Goodput: every second of a run has one cause, across restarts and rollbacks."""

import time

import pytest

from vaejax.rundir import goodput
from vaejax.rundir.goodput import CAUSES, Goodput


class Clock:
    """Both clocks of the computer; they advance only by `spend`."""

    def __init__(self, monkeypatch):
        self.now = 5e8
        monkeypatch.setattr(goodput.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(goodput.time, "time", lambda: self.now)

    def spend(self, stopwatch, **seconds):
        for cause, amount in seconds.items():
            with stopwatch.on(cause):
                self.now += amount


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def started(path, clock, step=0):
    """A session that has taken ten seconds to start from a checkpoint."""
    session = Goodput(path)
    clock.now += 10
    session.stopwatch.begin("updates")
    session.back_to(step)
    return session


def spent(session):
    return {cause: seconds for cause, seconds in session.seconds().items() if seconds}


def test_real_intervals_have_their_cause_and_the_shares_add_up_to_1(tmp_path):
    begin = time.monotonic()
    run = Goodput(tmp_path / "goodput.json")
    time.sleep(0.1)
    run.stopwatch.begin("updates")
    time.sleep(0.3)
    with run.stopwatch.on("evaluation"):
        time.sleep(0.1)
        with run.stopwatch.on("checkpoints"):  # inside another cause
            time.sleep(0.2)
        time.sleep(0.1)
    with pytest.raises(KeyError), run.stopwatch.on("data"):  # ends by an error
        time.sleep(0.1)
        raise KeyError
    time.sleep(0.1)
    shares, seconds, wall = run.scalars(), spent(run), time.monotonic() - begin
    expected = {"startup": 0.1, "updates": 0.4, "evaluation": 0.2, "checkpoints": 0.2, "data": 0.1}
    assert seconds == pytest.approx(expected, abs=0.08)
    assert sum(seconds.values()) == pytest.approx(wall, abs=0.02)
    assert sum(share for name, share in shares.items() if name != "train/all/goodput_session") == (
        pytest.approx(1)
    )
    assert shares["train/all/goodput"] == pytest.approx(seconds["updates"] / wall, abs=0.02)
    assert {f"train/all/badput_{cause}" for cause in CAUSES[1:]} < shares.keys()


def test_a_killed_session_loses_the_updates_since_its_checkpoint(tmp_path, clock):
    path = tmp_path / "goodput.json"
    first = started(path, clock)
    clock.spend(first.stopwatch, compilation=20, updates=100, data=5, checkpoints=1)
    first.saved(40)
    clock.spend(first.stopwatch, updates=30, evaluation=8, data=2)
    first.write()  # with a log line; then it is killed
    clock.now += 60  # 60 s until the next session
    second = started(path, clock, step=40)
    clock.spend(second.stopwatch, updates=30, data=2)
    times = {"startup": 20, "compilation": 20, "updates": 130, "data": 7, "checkpoints": 1, "evaluation": 8}
    assert spent(second) == times | {"lost": 32, "stopped": 60}
    assert sum(second.seconds().values()) == clock.now - 5e8
    scalars = second.scalars()
    assert scalars["train/all/goodput"] == pytest.approx(130 / 278)
    assert scalars["train/all/goodput_session"] == pytest.approx(30 / 42)
    run, session = second.summary().splitlines()
    assert run.startswith("goodput: 46.8% of 4m38s in updates; stopped 21.6%, lost 11.5%, ")
    assert session == "  this session: 71.4% of 42s in updates; startup 23.8%, data 4.8%"


def test_a_session_killed_before_its_first_checkpoint_has_only_lost_updates(tmp_path, clock):
    first = started(tmp_path / "goodput.json", clock)
    clock.spend(first.stopwatch, updates=50)
    first.write()
    second = started(tmp_path / "goodput.json", clock)
    assert spent(second) == {"startup": 20, "lost": 50}


def test_a_rollback_loses_updates_and_is_counted_once(tmp_path, clock):
    run = started(tmp_path / "goodput.json", clock)
    clock.spend(run.stopwatch, updates=40)
    run.saved(4)
    for _ in range(2):  # rolls back twice to the same checkpoint
        clock.spend(run.stopwatch, updates=20)
        run.back_to(4)
    clock.spend(run.stopwatch, updates=20)
    run.saved(8)
    run.back_to(8)
    assert spent(run) == {"startup": 10, "updates": 60, "lost": 40}
    assert "\n" not in run.summary()  # the only session


def test_what_one_session_loses_of_another_is_not_taken_from_its_own_time(tmp_path, clock):
    """The newest checkpoint is damaged, so the second session begins at the one before."""
    first = started(tmp_path / "goodput.json", clock)
    for step in (4, 8):
        clock.spend(first.stopwatch, updates=40)
        first.saved(step)
    second = started(tmp_path / "goodput.json", clock, step=8)
    clock.spend(second.stopwatch, updates=10)
    second.back_to(4)
    assert spent(second) == {"startup": 20, "updates": 40, "lost": 50}
    assert second.summary().endswith("this session: 0.0% of 20s in updates; startup 50.0%, lost 50.0%")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"written": 0, "seconds": 3, "checkpoints": {}}'])
def test_a_damaged_file_starts_a_new_count(tmp_path, clock, content):
    (tmp_path / "goodput.json").write_text(content)
    run = started(tmp_path / "goodput.json", clock)
    assert spent(run) == {"startup": 10}


def test_only_process_0_writes(tmp_path, clock):
    Goodput(tmp_path / "goodput.json", writes=False).saved(4)
    assert not list(tmp_path.iterdir())


def test_the_file_stays_small_and_a_new_start_replaces_its_checkpoints(tmp_path, clock):
    run = started(tmp_path / "goodput.json", clock)
    for step in range(10, 3000, 10):
        run.saved(step)
    assert (tmp_path / "goodput.json").stat().st_size < 15_000
    run.back_to(0)
    clock.spend(run.stopwatch, updates=5)
    run.saved(10)
    clock.spend(run.stopwatch, updates=3)
    run.back_to(10)
    assert spent(run) == {"startup": 10, "updates": 5, "lost": 3}
