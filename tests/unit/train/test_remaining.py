"""The time that a run will still spend on other tasks than updates."""

from vaejax.config import check
from vaejax.configs import demo
from vaejax.rundir.console import Later
from vaejax.runtime import stopwatch
from vaejax.train.remaining import STATISTICS, Remaining


def test_each_task_is_expected_to_take_as_long_as_the_last_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now[0])
    config = demo.get_config()
    config.steps, config.probe.every = 900, 450
    config.eval.every = config.panels.every = config.checkpoint.every = 300
    config.eval.samples, config.eval.latent_samples = 32, 64
    expected = Remaining(check(config))
    assert expected.after(20) == Later(0, ("evaluation", "probe"))

    def takes(task, seconds):
        with expected.timing(task):
            now[0] += seconds

    takes("score", 100.0)
    statistics = STATISTICS * 64 / 32
    assert expected.after(20) == Later((3 + statistics) * 100, ("probe",))
    takes("score", 30.0)
    takes("show", 2.0)
    takes("save", 1.0)
    assert expected.after(300) == Later(3 * 33 + statistics * 30, ("probe",))  # before those of step 300
    takes("probe", 500.0)
    assert expected.after(301) == Later(2 * 33 + statistics * 30 + 2 * 500, ())
    assert expected.after(900) == Later(33 + statistics * 30 + 500, ())
