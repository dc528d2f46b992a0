"""Jobs of launch/slurm.sbatch, in a real one-node Slurm, are killed, requeued and finished."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests.support.processes import ROOT

DAEMONS = ("munged", "slurmctld", "slurmd")
MISSING = [
    name for name in (*DAEMONS, "sbatch") if not shutil.which(name, path="/usr/sbin:" + os.environ["PATH"])
]
pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed (Debian: slurm-wlm munge)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd and munged must be started by root"),
]

CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={controller}
SlurmdPort={daemon}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=30
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Starts the daemons; commands find them through SLURM_CONF."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, controller=free_port(), daemon=free_port()))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.setenv("PATH", "/usr/sbin:" + os.environ["PATH"])
    munge = [f"--socket={folder}/munge.socket", f"--key-file={key}", f"--pid-file={folder}/munge.pid"]
    munge += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed", "--foreground", "--force"]
    started = [subprocess.Popen(["munged", *munge])]
    while not (folder / "munge.socket").exists():
        assert started[0].poll() is None
        time.sleep(0.1)
    started += [subprocess.Popen([name, "-D", "-f", str(conf)]) for name in ("slurmctld", "slurmd")]
    yield folder
    subprocess.run(["scancel", "--user=root"], check=False)
    for process in reversed(started):
        process.terminate()
        process.wait(30)


def job(number):
    shown = subprocess.run(
        ["scontrol", "show", "job", number], capture_output=True, text=True, check=True
    ).stdout
    return dict(re.findall(r"(\w+)=(\S*)", shown))


def start_now(number):
    """Starts a requeued job, which Slurm would delay by two minutes."""
    subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=False)


def wait_for(condition, log, seconds=420):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text()[-3000:] if log.exists() else "no log"
        time.sleep(0.2)


def metrics(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def submitted(workdir, log, *arguments):
    """Submits a job of two tasks and returns its number."""
    more = ["--config.data.sources={'demo': {'kind': 'demo'}}", "--config.log_every=1"]
    more += ["--config.data.buckets.image_64x64.batch=0", "--config.data.buckets.image_96x160.batch=0"]
    more += ["--config.data.buckets.video_9x48x80.batch=0", "--config.data.buckets.image_48x80.batch=4"]
    more += ["--config.data.buckets.video_5x48x80.batch=4", "--config.loss.perceptual.network=alexnet"]
    more += ["--config.loss.adversarial.start=4", "--config.loss.adversarial.warmup=2"]
    more += ["--config.eval.linear_samples=0", "--config.eval.latent_samples=0", "--config.eval.samples=4"]
    environment = dict(os.environ, PYTHON=sys.executable, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    environment |= {"JAX_NUM_CPU_DEVICES": "2", "JAX_COMPILATION_CACHE_DIR": str(ROOT / "build" / "xla")}
    submit = ["sbatch", "--parsable", f"--output={log}", "--nodes=1", "--ntasks-per-node=2", "--time=30"]
    submit += [
        str(ROOT / "launch" / "slurm.sbatch"),
        "configs/joint.py:tiny",
        str(workdir),
        *more,
        *arguments,
    ]
    while True:  # until the controller answers
        found = subprocess.run(submit, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        if number := found.stdout.strip():
            return number
        time.sleep(0.5)


def test_a_job_of_two_tasks_is_requeued_after_a_kill_and_a_signal_and_finishes(slurm, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "job.log"
    arguments = ["--config.steps=20", "--config.checkpoint.every=2"]
    number = submitted(workdir, log, *arguments, "--config.eval.every=20", "--config.panels.every=20")

    def steps():
        return [m["step"] for m in metrics(workdir) if (m["split"], m["bucket"]) == ("train", "image_48x80")]

    def tasks():
        return [
            p for p in psutil.process_iter(["cmdline"]) if f"--workdir={workdir}" in (p.info["cmdline"] or [])
        ]

    wait_for(lambda: max(steps(), default=0) >= 3, log)
    next(p for p in tasks() if "srun" not in p.info["cmdline"][0]).send_signal(signal.SIGKILL)
    wait_for(lambda: job(number).get("Restarts") == "1", log)
    start_now(number)
    wait_for(lambda: max(steps(), default=0) >= 5, log)
    subprocess.run(["scancel", "--signal=TERM", "--batch", number], check=True)
    wait_for(lambda: job(number).get("Restarts") == "2" or max(steps()) == 20, log)
    start_now(number)
    wait_for(lambda: job(number)["JobState"] in ("COMPLETED", "FAILED"), log)
    found = job(number)
    assert (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0"), log.read_text()[-3000:]
    lines = [(line["step"], line["split"], line["bucket"]) for line in metrics(workdir)]
    assert len(set(lines)) == len(lines) and steps() == list(range(1, 21))
    assert (workdir / "checkpoints" / "20").is_dir()
    codes = re.findall(r"exit code (\d+); queued again", log.read_text())
    assert codes == ["137", "75"]


def test_a_wrong_and_a_cancelled_job_are_not_requeued(slurm, tmp_path):
    """Slurm kills the other task once one has found the error; that must not look like a crash."""
    log = tmp_path / "wrong.log"
    number = submitted(tmp_path / "wrong", log, "--config.mesh.fsdp=3")
    wait_for(lambda: job(number)["JobState"] in ("COMPLETED", "FAILED"), log)
    found = job(number)
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "2:0", "0")
    assert "mesh: data 0 x fsdp 3" in log.read_text()

    workdir, log = tmp_path / "cancelled", tmp_path / "cancelled.log"
    number = submitted(workdir, log, "--config.steps=400", "--config.loss.weights.adversarial=0.")
    wait_for(lambda: len(metrics(workdir)) > 2, log)
    subprocess.run(["scancel", number], check=True)
    wait_for(lambda: job(number)["JobState"] == "CANCELLED", log)
    time.sleep(5)
    found = job(number)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0"), log.read_text()[-3000:]
    assert [path.name.isdecimal() for path in (workdir / "checkpoints").iterdir()] == [True]
