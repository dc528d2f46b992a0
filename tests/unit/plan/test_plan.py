"""Plans: traffic read from compiled programs of known size, predictions, tables and suggestions."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.plans import CHIP, cost
from tests.support.processes import ROOT
from vaejax.config import check
from vaejax.configs import demo
from vaejax.data.bucket import Bucket, parse_buckets
from vaejax.plan import command as planning
from vaejax.plan import hlo, table
from vaejax.plan.cost import needed_by
from vaejax.plan.prediction import Prediction
from vaejax.plan.topology import Topology
from vaejax.runtime import flops
from vaejax.runtime import mesh as sharding
from vaejax.train.programs import Programs


def on_four(f, *shapes_and_specs):
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in shapes_and_specs
    ]
    return jax.jit(f, out_shardings=NamedSharding(mesh, P())).lower(*arguments).compile()


def test_a_loop_moves_its_bodys_traffic_once_per_iteration():
    def times(n):
        x, w = jnp.zeros((256, 256)), jnp.zeros((n, 256, 256))
        program = jax.jit(lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])
        return hlo.traffic(program.lower(x, w).compile().as_text()).memory

    few, many = times(4), times(20)
    # An iteration reads x and a slice of w and writes the product, tanh and x; it does not read all of w.
    assert 3 * 256 * 256 * 4 <= (many - few) / 16 <= 10 * 256 * 256 * 4


def test_bytes_sent_to_other_devices_are_counted():
    size = 4 * 1024 * 64  # bytes of an array; each device has a quarter

    def sent(f, spec):
        return hlo.traffic(on_four(f, ((1024, 64), spec)).as_text()).collectives

    gathered = sent(lambda x: x * 2, P("x"))
    assert gathered == {"all-gather": pytest.approx(3 / 4 * size)}
    (kind, amount), *_ = sent(lambda x: x.sum(0), P("x")).items()
    assert kind == "all-reduce" and amount == pytest.approx(2 * 3 / 4 * 4 * 64)
    halo = sent(lambda x: (x[1:] + x[:-1]).sum(), P("x"))
    assert 0 < halo["collective-permute"] <= 4 * 2 * 64 * 4  # a row, not the array


def test_sizes_are_those_of_a_tpu():
    """Tiles are padded; arrays in fast memory are counted only on request."""
    assert hlo.size("f32[3,5]{1,0}") == 60
    assert hlo.size("bf16[17,96,160,3]{3,2,1,0:T(8,128)(2,1)}") == 17 * 96 * 160 * 128 * 2
    assert hlo.size("(f32[8]{0:T(128)}, s32[]{:T(128)S(6)}, pred[2]{0})") == 128 * 4 + 2
    assert hlo.size("f32[128]{0:T(128)S(1)}") == 0
    assert hlo.size("f32[128]{0:T(128)S(1)}", anywhere=True) == 512


SPREAD = """HloModule spread

%start (p.0: bf16[8,32]) -> (bf16[8,32], bf16[8,128]) {
  %p.0 = bf16[8,32]{1,0} parameter(0)
  %all-gather.0 = bf16[8,128]{1,0} all-gather(%p.0), channel_id=4, replica_groups=[1,4]<=[4], dimensions={1}
  ROOT %begun = (bf16[8,32]{1,0}, bf16[8,128]{1,0}) custom-call(%all-gather.0), custom_call_target="Begin"
}

%done (p.1: bf16[8,32]) -> bf16[8,128] {
  %p.1 = bf16[8,32]{1,0} parameter(0)
  %all-gather.1 = bf16[8,128]{1,0} all-gather(%p.1), channel_id=4, replica_groups=[1,4]<=[4], dimensions={1}
  ROOT %ended = bf16[8,128]{1,0} custom-call(%p.1, %all-gather.1), custom_call_target="End"
}

ENTRY %main (x: bf16[8,32]) -> bf16[8,128] {
  %x = bf16[8,32]{1,0} parameter(0)
  %fusion.0 = (bf16[8,32]{1,0}, bf16[8,128]{1,0}) fusion(%x), kind=kCustom, calls=%start
  ROOT %fusion.1 = bf16[8,128]{1,0} fusion(%x), kind=kCustom, calls=%done
}
"""


def test_a_collective_spread_over_fusions_is_counted_once():
    assert hlo.traffic(SPREAD).collectives == {"all-gather": 3 * 8 * 32 * 2}


TOPOLOGY = Topology("v5e:2x2", [], "tpu", CHIP)


def predicted(**more):
    bucket = Bucket(1, 64, 64, batch=8, every=2)
    costs = {
        "image_64x64": cost(**more),
        "update": cost(flops=0, memory_traffic=5.0, temporary=0, collectives={}),
    }
    return Prediction([bucket], costs, parameters=50, state=200, chips=4, chip=CHIP)


def test_a_prediction_adds_up():
    found = predicted()
    parts = {"compute": 2.0, "memory": 1.0, "cycles": 0.0, "links": 1.0, "total": 3.0}
    assert found.seconds("image_64x64") == parts
    assert dataclasses.replace(found, shape=(2, 2)).seconds("image_64x64")["links"] == 2.0  # lines, not rings
    assert found.update_seconds == 3.0 / 2 + 0.5
    assert found.samples_per_second == 4 / 2.0
    assert found.utilization == pytest.approx(600 / 2 / 2.0 / 4 / 100)
    assert found.needed("image_64x64") == 200 + 20 + 400
    config = check(demo.get_config())
    plan = table.numbers(config, TOPOLOGY, found, samples=7200, price=2.0)
    assert plan["run"] == {"samples": 7200, "hours": 1.0, "cost": 8.0}
    assert "8 at 2 per chip-hour" in table.text(config, TOPOLOGY, found, samples=7200, price=2.0)


def test_bytes_between_slices_take_the_network():
    both = predicted(crossing=3.0)
    chip = dataclasses.replace(CHIP, network=0.5)
    assert dataclasses.replace(both, chip=chip).seconds("image_64x64")["links"] == (5 - 3) / 5 + 3 / 0.5


def test_the_slower_of_roofline_and_cycle_estimates_is_quoted():
    slow, config = predicted(cycles=20.0), check(demo.get_config())
    assert slow.seconds("image_64x64")["total"] == 20 / 4 + 1.0
    assert slow.update_seconds == 6.0 / 2 + 0.5 and slow.roofline_seconds == predicted().update_seconds == 2.0
    text = table.text(config, TOPOLOGY, slow)
    assert "one update: 3.500 s" in text
    assert "(by libtpu's cycle estimates; the roofline alone says 2.000 s)" in text
    assert "(by the roofline;" in table.text(config, TOPOLOGY, predicted(cycles=7.0))


ESTIMATED = """HloModule loop

%body (p.0: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.0 = (s32[], f32[8]) parameter(0)
  %x = f32[8]{0} fusion(%p.0), kind=kLoop, calls=%f, backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %t = (s32[], f32[8]) tuple(%p.0, %x)
}

%f (q.0: f32[8]) -> f32[8] {
  %q.0 = f32[8]{0} parameter(0)
  ROOT %y = f32[8]{0} add(%q.0, %q.0), backend_config={"window_config":{"estimated_cycles":"5"}}
}

%condition (c.0: (s32[], f32[8])) -> pred[] {
  %c.0 = (s32[], f32[8]) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (a.0: f32[8]) -> (s32[], f32[8]) {
  %a.0 = f32[8]{0} parameter(0)
  %b.0 = f32[8]{0} copy(%a.0), backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %w = (s32[], f32[8]) while(%b.0), condition=%condition, body=%body, backend_config=KNOWN
}
""".replace("KNOWN", '{"known_trip_count":{"n":"3"}}')


def test_cycles_are_summed_over_instructions_and_iterations_but_not_inside_fusions():
    assert hlo.traffic(ESTIMATED).cycles == 100 + 3 * 7


def test_the_table_has_only_columns_that_are_known():
    config = check(demo.get_config())
    header, *rows = table.text(config, TOPOLOGY, predicted()).splitlines()[3:6]
    assert header.split()[-4:] == ["total", "ms", "samples/s", "MFU"]
    assert [row.split()[0] for row in rows] == ["image_64x64", "update"]
    on_cpus = dataclasses.replace(predicted(), chip=None)
    text = table.text(config, Topology("cpu:4", [], "cpu", None), on_cpus)
    assert text.splitlines()[3].split()[-2:] == ["sent", "MB"]
    assert " ms" not in text and "MFU" not in text and "samples/s" not in text


def test_the_last_words_say_what_fits_and_what_to_do_next():
    flags = ["--config=demo", "--config.mesh.fsdp=2"]
    fits = table.last_words(TOPOLOGY, predicted(), flags, suggested=False).splitlines()
    assert fits[0] == "planned 1 bucket, the optimizer step and evaluation for v5e:2x2: everything fits"
    assert fits[1] == f"next: python -m vaejax.main {' '.join(flags)} --workdir=DIR"
    large = table.last_words(TOPOLOGY, predicted(temporary=1500), flags, suggested=False).splitlines()
    assert large[0].endswith("does not fit: image_64x64")
    assert large[1] == f"next: python -m vaejax.plan {' '.join(flags)} --topology=v5e:2x2 --suggest"


def test_a_bucket_that_does_not_fit_is_named_with_remedies():
    text = table.text(check(demo.get_config()), TOPOLOGY, predicted(temporary=1500))
    (line,) = (line for line in text.splitlines() if "GB are available" in line)
    assert line.startswith("image_64x64 needs") and "--config.data.buckets.image_64x64.batch=4" in line
    assert "--config.data.buckets.image_64x64.micro=4, or" in line
    assert "--config.model.remat='(0, 1, 2)'" in line
    assert "does not fit" in text and "samples/s" not in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        ({"fsdp": 2, "space": 1}, ["--config.mesh.fsdp=4", "--config.mesh.space=2 and "]),
        ({"fsdp": 2, "space": 2}, []),  # the mesh has no chips left
        ({"data": 2, "fsdp": 2}, []),
    ],
)
def test_only_meshes_that_the_chips_can_form_are_proposed(mesh, expected):
    config = demo.get_config()
    config.mesh.update(mesh)
    config.data.buckets.image_64x64.batch = 8
    prediction = dataclasses.replace(predicted(temporary=1000), state=500)
    (line,) = (
        line
        for line in table.text(check(config), TOPOLOGY, prediction).splitlines()
        if "GB are available" in line
    )
    found = [flag for flag in ("--config.mesh.fsdp=4", "--config.mesh.space=2 and ") if flag in line]
    assert found == expected, line
    assert "--config.mesh.space=4" not in line and "--config.mesh.fsdp=8" not in line


def test_an_update_that_does_not_fit_is_reported_too():
    prediction = predicted()
    costs = dict(prediction.costs, update=cost(flops=0, temporary=1500))
    text = table.text(check(demo.get_config()), TOPOLOGY, dataclasses.replace(prediction, costs=costs))
    assert (
        "update needs 0.0 GB, but only 0.0 GB are available; try --config.mesh.fsdp=2, a smaller model"
        in text
    )


def test_the_memory_that_a_program_lacks_is_read_from_libtpus_message():
    """The total includes the state; messages of libtpu 0.0.52 and of other releases."""
    new = "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries"
    assert needed_by(f"{new} (74.58G) exceeds available HBM (15.75G).") == int(74.58 * 2**30)
    old = "Ran out of memory in memory space hbm. Used 1.5T of 15.75G hbm. Exceeded hbm capacity by 1.4T."
    assert needed_by(old) == int(1.5 * 2**40)
    assert needed_by("INTERNAL: something else") == 0
    found = predicted(temporary=1500, fits=False, code=0)
    assert found.needed("image_64x64") == 1500 + 10 and not found.all_fit  # and the update's code


def test_the_key_of_a_cost_depends_on_the_buckets_of_the_run():
    """Without clips there is no discriminator of clips, so the programs of images differ."""
    config, topology, keys = demo.get_config("tiny"), Topology("cpu:1", jax.devices()[:1], "cpu", None), []

    class Keys:
        def of(self, name, made_from, trace, model_flops, slices):
            keys.append((name, json.dumps(made_from)))
            return cost()

    planning.plan(check(config), topology, Keys())
    config.data.buckets.video_9x64x64.batch = 0
    planning.plan(check(config), topology, Keys())
    assert len(keys) == 5 + 3 and not set(keys[:5]) & set(keys[5:])


def test_evaluation_and_the_probe_are_planned_and_named_if_they_do_not_fit():
    config, topology, found = demo.get_config("tiny"), Topology("cpu:1", jax.devices()[:1], "cpu", CHIP), {}
    config.probe.every = 100

    class Measured:
        def of(self, name, made_from, trace, model_flops, slices):
            found[name] = flops.count(trace().jaxpr)
            return cost(temporary=1500 if name == "evaluate image_64x64" else 0)

    prediction = planning.plan(check(config), topology, Measured())
    image = next(name for name in found if name.startswith("image_64x64"))
    # A pass forward, and one more through the perceptual network; gradients take twice as much again.
    assert 0.25 * found[image] < found["evaluate image_64x64"] < 0.5 * found[image]
    assert found["fit the probe"] > 0 and found["evaluate video_9x64x64"] > 0
    prediction = dataclasses.replace(prediction, state=0)
    text = table.text(check(config), topology, prediction)
    (line,) = (line for line in text.splitlines() if "GB are available" in line)
    assert line.startswith("evaluate image_64x64 needs") and ".micro=" in line
    assert not prediction.all_fit


def command(*arguments, cache):
    environment = dict(os.environ, XDG_CACHE_HOME=str(cache), PYTHONPATH=str(ROOT))
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    return subprocess.run(
        [sys.executable, "-m", "vaejax.plan", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_unknown_topology_is_one_line(tmp_path):
    found = command("--config=configs/demo.py", "--topology=v9:4", cache=tmp_path)
    assert found.returncode == 2 and "--topology=v9:4; accepted: v5e:16x16" in found.stderr.splitlines()[-1]


@pytest.mark.variants
def test_the_demo_on_eight_devices_needs_what_its_programs_need(tmp_path, as_the_command):
    arguments = ["--config=configs/demo.py", "--topology=cpu:8", "--config.mesh.space=4"]
    found = command(*arguments, f"--json={tmp_path / 'plan.json'}", cache=tmp_path)
    assert found.returncode == 0, found.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    config = demo.get_config()
    config.mesh.space = 4
    config = check(config)
    mesh = sharding.make_mesh(config.mesh)
    buckets = parse_buckets(config.data.buckets, 8, 4, shards=2, space=4)
    programs = Programs.of(config, buckets, mesh)
    phase = programs.phase(config.steps - 1)
    for bucket in buckets:
        real = programs.gradients(phase, bucket).lower().compile().memory_analysis()
        planned = plan["programs"][bucket.name]["bytes"]["activations"]
        assert planned == pytest.approx(real.temp_size_in_bytes, rel=0.1)
    again = command(*arguments, cache=tmp_path)
    assert again.stdout == found.stdout and "compiling" not in again.stderr


@pytest.mark.variants
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_a_tpu_slice_that_is_absent_can_be_planned_for(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # flags of CPUs, which the TPU compiler does not know
    arguments = ["--config=configs/demo.py:tiny", "--topology=v5e:4x4", "--config.mesh.fsdp=2"]
    arguments += ["--config.data.buckets.image_64x64.batch=16", "--config.data.buckets.video_9x64x64.batch=0"]
    arguments += ["--config.loss.weights.perceptual=0.", "--config.loss.weights.adversarial=0."]
    found = command(*arguments, f"--json={tmp_path / 'plan.json'}", cache=tmp_path)
    assert found.returncode == 0, found.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["chips"] == 16 and 0 < plan["update"]["flop_utilisation"] < 1
    assert plan["programs"]["image_64x64"]["bytes"]["sent"]["all-reduce"] > 0
    assert "suggest" not in found.stdout and "samples/s" in found.stdout


def has_gpu_compiler() -> bool:
    try:
        return importlib.util.find_spec("jax_plugins.xla_cuda13") is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.variants
@pytest.mark.skipif(not has_gpu_compiler(), reason="the extra plan-gpu is not installed")
def test_gpus_that_are_absent_can_be_planned_for(tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    arguments = ["--config=configs/demo.py:tiny", "--config.mesh.fsdp=2"]
    arguments += ["--config.data.buckets.image_64x64.batch=16", "--config.data.buckets.video_9x64x64.batch=0"]
    arguments += ["--config.loss.weights.perceptual=0.", "--config.loss.weights.adversarial=0."]
    plans = {}
    for name in ("h100:8", "h100:2x8"):
        file = tmp_path / "plan.json"
        found = command(*arguments, f"--topology={name}", f"--json={file}", cache=tmp_path)
        assert found.returncode == 0, found.stderr
        assert " ms" not in found.stdout and "no times are predicted for GPUs" in found.stdout
        plans[name] = json.loads(file.read_text())
    plan = plans["h100:8"]
    assert plan["chips"] == 8 and plans["h100:2x8"]["chips"] == 16
    assert plan["bytes"]["room"] == pytest.approx(0.9 * 84_942_979_072 - 4e9)
    image = plan["programs"]["image_64x64"]
    assert image["bytes"]["sent"]["all-reduce"] > 0 and image["bytes"]["traffic"] > 1e6
    assert "seconds" not in image and "update" not in plan
