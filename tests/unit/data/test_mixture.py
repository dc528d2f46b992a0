"""Sources alternate by their weights, and each goes on with its next sample if the weights change."""

import collections

import pytest

from vaejax.config.schema import defaults
from vaejax.data import mixture
from vaejax.data.bucket import Bucket
from vaejax.data.mixture import Mixture, Stretch, continued
from vaejax.data.pipeline import train_stream
from vaejax.data.sampler import Sampler
from vaejax.data.sources import open_sources
from vaejax.errors import InputError

IMAGE = Bucket(1, 16, 16, 4)


def drawn(history, count):
    """The samples of each source among the first `count`: {label: [0, 1, ...]}."""
    found = collections.defaultdict(list)
    mixed = Mixture(history)
    for label, number in map(mixed.__getitem__, range(count)):
        found[label].append(number)
    return found


def test_sources_give_their_samples_in_order_and_by_weight():
    found = drawn([Stretch(0, {"a": 3.0, "b": 1.0})], 400)
    assert {label: len(numbers) for label, numbers in found.items()} == {"a": 300, "b": 100}
    assert all(numbers == list(range(len(numbers))) for numbers in found.values())


def test_a_source_goes_on_with_its_next_sample_after_the_weights_change():
    history = [Stretch(0, {"a": 3.0, "b": 1.0})]
    for position, weights in (
        (101, {"a": 0.01, "b": 1.0}),
        (150, {"b": 1.0}),
        (333, {"a": 1.0, "b": 1.0, "c": 5.0}),
    ):
        history = continued(history, position, weights)
    found = drawn(history, 700)
    assert all(numbers == list(range(len(numbers))) for numbers in found.values()), found
    last = Mixture(history)
    shares = collections.Counter(last[i][0] for i in range(333, 333 + 70))
    assert shares == {"a": 10, "b": 10, "c": 50}


def test_equal_weights_continue_a_stretch_and_later_ones_of_a_rolled_back_run_are_dropped():
    weights, other = {"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 2.0}
    history = continued([], 0, weights)
    assert continued(history, 50, weights) == history == [Stretch(0, weights)]
    changed = continued(history, 50, other)
    assert changed == [Stretch(0, weights), Stretch(50, other)]
    assert continued(changed, 40, weights) == history  # resumed from a checkpoint before the change
    assert continued(changed, 50, other) == changed and continued(changed, 80, other) == changed


def settings(weights):
    data = defaults().data
    sources = {label: {"kind": "synthetic", "weight": w, "seed": ord(label)} for label, w in weights.items()}
    data.update(workers=0, holdout=0.0, sources=sources)
    return data


def samples(data, steps, histories=None, start=0):
    with train_stream(
        open_sources(data), [IMAGE], data, seed=0, start_step=start, histories=histories
    ) as stream:
        batches = [next(stream).batches[IMAGE.name] for _ in range(steps)]
        read = [frames.tobytes() for batch in batches for frames in batch.frames]
        return read, stream.histories


def test_a_resumed_stream_with_other_weights_repeats_and_skips_nothing():
    first, second = settings({"a": 1.0, "b": 1.0}), settings({"a": 1.0, "b": 3.0})
    before, histories = samples(first, 6)
    after, changed = samples(second, 6, histories, start=6)
    assert changed[IMAGE.name] == [Stretch(0, {"a": 1.0, "b": 1.0}), Stretch(24, {"a": 1.0, "b": 3.0})]
    sampler = Sampler(open_sources(first), IMAGE, "train", first, 0)  # draws 1000 of each, by equal weights
    for label, count in (("a", 12 + 6), ("b", 12 + 18)):
        expected = [sampler[i].frames.tobytes() for i in range(2 * count) if sampler._mixture[i][0] == label]
        assert len(set(expected)) == count and set(expected) <= set(before + after)
    assert samples(second, 6, changed, start=6)[0] == after


def test_the_weights_of_a_run_of_an_earlier_version_are_those_of_its_configuration(tmp_path):
    saved = {
        "data": {
            "media": "",
            "buckets": {"x": {}},
            "sources": {"a": {"weight": 2}, "b": {}, "c": {"weight": 0}},
        }
    }
    assert mixture.read(tmp_path / "mixture.json", saved) == {"x": [Stretch(0, {"a": 2.0, "b": 1.0})]}
    saved["data"]["media"] = "FOLDER"
    assert mixture.read(tmp_path / "mixture.json", saved) == {"x": [Stretch(0, {"media": 1.0})]}
    assert mixture.read(tmp_path / "mixture.json", None) == {}
    kept = {"x": [Stretch(0, {"a": 2.0}), Stretch(7, {"b": 1.0})]}
    mixture.write(tmp_path / "mixture.json", kept)
    assert mixture.read(tmp_path / "mixture.json", saved) == kept
    (tmp_path / "mixture.json").write_text("[]")
    with pytest.raises(InputError, match="damaged; accepted"):
        mixture.read(tmp_path / "mixture.json", None)
