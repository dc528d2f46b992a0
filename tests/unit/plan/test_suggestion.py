"""The batches and the mesh that `vaejax plan --suggest` finds, for programs of known needs."""

import dataclasses

import pytest

from tests.support.plans import CHIP, cost
from vaejax.config import check
from vaejax.configs import demo
from vaejax.data.bucket import buckets_of
from vaejax.errors import InputError
from vaejax.plan import suggestion
from vaejax.plan.prediction import Prediction
from vaejax.plan.topology import Topology


def suggested(config, chips, memory, capsys, really=lambda batch, needed: needed):
    """The suggestion's console output and the compiled plans, if a sample takes one byte of its chip.

    `really` maps the images computed at once and a program's estimated memory to the memory that it needs.
    """
    topology = Topology("v5e", [None] * chips, "tpu", dataclasses.replace(CHIP, memory=memory))
    plans = []

    def plan(config):
        plans.append(config)
        buckets = buckets_of(config, chips // config.mesh.space, config.mesh.space)
        costs = {}
        for b in buckets:
            images = next(b for b in buckets if b.kind == "image").at_once
            needed = round(really(images, b.at_once / chips))
            costs[b.name] = cost(temporary=needed, flops=100 * b.batch)
            if needed > memory:
                unknown = {"collectives": {}, "memory_traffic": 0.0, "code": 0, "fits": False}
                costs[b.name] = dataclasses.replace(costs[b.name], **unknown)
        costs["update"] = cost(flops=0, temporary=0, memory_traffic=1000.0)
        return Prediction(buckets, costs, 0, 0, chips, topology.chip)

    suggestion.best(check(config), topology, plan)
    return capsys.readouterr().out, plans


def test_the_largest_batches_that_fit_are_suggested_for_a_mesh_that_does_not_suit_yet(capsys):
    config = demo.get_config()
    for bucket, batch in (("image_64x64", 8), ("video_9x64x64", 2)):
        config.data.buckets[bucket].batch = batch
    config.mesh.update({"fsdp": 16, "space": 8})  # of 16 chips
    out, plans = suggested(config, 16, memory=40 * 4 + 20.0, capsys=capsys)
    assert plans[0].mesh.fsdp * plans[0].mesh.space <= 16
    assert "--config.data.buckets.image_64x64.batch=256" in out  # 16 a chip, at 24 there is no room
    assert "--config.data.buckets.video_9x64x64.batch=64" in out


def of_sixteen(images, clips):
    config = demo.get_config()
    config.mesh.update({"fsdp": 4, "space": 1})
    config.data.buckets.image_64x64.batch, config.data.buckets.video_9x64x64.batch = images, clips
    return config


def test_an_estimate_that_was_too_low_leads_to_the_largest_batch_below_it(capsys):
    def really(batch, needed):
        return needed * (1.5 if batch >= 256 else 1)

    out, plans = suggested(of_sixteen(64, 16), 16, 30 + 16.0, capsys, really)
    assert [config.data.buckets["image_64x64"]["batch"] for config in plans] == [64, 256, 128, 192]
    assert "--config.data.buckets.image_64x64.batch=192" in out


def test_if_nothing_else_fits_the_configuration_itself_is_suggested(capsys):
    def really(batch, needed):
        return needed * (20 if batch > 64 else 1)

    out, plans = suggested(of_sixteen(64, 16), 16, 30 + 16.0, capsys, really)
    assert len(plans) > 1 and "--config.data.buckets.image_64x64.batch=64" in out


def test_for_a_configuration_that_does_not_fit_pieces_are_suggested(capsys):
    out, plans = suggested(of_sixteen(1024, 256), 16, 30 + 32.0, capsys)
    assert plans[0].data.buckets["image_64x64"] == {"batch": 1024, "weight": 1.0}
    assert "--config.data.buckets.image_64x64.batch=1024" in out and len(plans) <= 3
    assert "--config.data.buckets.image_64x64.micro=512" in out
    assert "--config.data.buckets.video_9x64x64.micro=128" in out
    with pytest.raises(InputError, match="none of the 1 compiled plans fits"):
        suggested(of_sixteen(1024, 256), 16, 1.0, capsys)


def test_one_chip_gets_a_suggestion_too_and_batches_that_suit_no_mesh_are_refused(capsys):
    config = demo.get_config()
    assert "suggested" in suggested(config, 1, memory=1e6, capsys=capsys)[0]
    config.data.buckets.image_64x64.batch = 7
    with pytest.raises(InputError, match="the mesh cannot split these batch sizes over 1009 chips"):
        suggested(config, 1009, memory=1e6, capsys=capsys)
