"""The tasks that are due after an update."""

from vaejax.config import check
from vaejax.configs import demo
from vaejax.train.schedule import Schedule


def test_everything_but_the_probe_that_is_off_is_due_at_its_interval_and_at_the_end():
    config = demo.get_config()
    config.steps, config.log_every = 10, 3
    config.eval.every, config.panels.every, config.checkpoint.every = 4, 6, 5
    schedule = Schedule(check(config))
    names = {"log": [3, 6, 9, 10], "score": [4, 8, 10], "probe": [], "show": [6, 10], "save": [5, 10]}
    for name, steps in names.items():
        assert [step for step in range(1, 11) if getattr(schedule.due(step), name)] == steps, name
        for now in range(1, 11):
            if name != "log":
                assert schedule.remaining(now)[name] == sum(step >= now for step in steps), (name, now)
    assert [step for step in range(1, 11) if schedule.due(step).last] == [10]
    assert [step for step in range(1, 11) if schedule.due(step).evaluates] == [4, 6, 8, 10]
