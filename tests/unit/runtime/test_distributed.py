"""What processes of a run agree on, as two real ones, and how they find their devices."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.support import processes


def test_two_processes_stop_go_on_and_refuse_together(tmp_path):
    started = processes.start(2, 1, [str(tmp_path)], tmp_path, module="tests.support.agreeing")
    codes = processes.finish(started, 120)
    logs = [process.log.read_text() for process in started]
    assert codes == [0, 0], logs
    told = [json.loads(next(line for line in log.splitlines() if line.startswith("{"))) for log in logs]
    assert [one.pop("first alone") for one in told] == [0, 1]  # how many had made it before
    first, second = (one.pop("waited") for one in told)
    assert first > 1 > second  # the late one was waited for
    assert told[0] == told[1]
    assert told[0]["alike"] == [3, None]
    assert told[0]["one fails"] == [1, "process 1: photo.jpg: no such file"]
    assert told[0]["one reads other frames"] == [2, "process 1 read other frames than process 0"]
    assert told[0]["one has fewer"] == [2, "process 1 read other frames than process 0"]
    assert told[0]["first refused"] == "process 0 has no such folder"
    assert told[0]["another table"].startswith("process 1 finds other photos than process 0")
    assert told[0]["heard after a resume"] < 10  # not 100, as if 50,000 steps had taken a second
    assert told[0]["heard after a return"] == 0


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.parametrize(
    ("tasks", "local", "visible"),
    [
        ("1(x4)", "", "all"),
        ("2(x4)", "", "1"),
        ("1,2(x3)", "", "1"),
        ("1(x4)", "2", "1"),
        ("2(x4)", "1", "all"),
    ],
    ids=["alone", "two", "two on some", "two of mpirun's", "alone of mpirun's"],
)
def test_a_task_that_is_alone_on_its_node_sees_all_of_its_gpus(tasks, local, visible):
    """JAX itself shows a task one GPU, its place on the node; mpirun's tasks inherit Slurm's variables."""
    program = "import jax; from vaejax.runtime import distributed; distributed.initialize();"
    program += "print(jax.config.values['jax_cuda_visible_devices'])"
    environment = dict(os.environ, JAX_PLATFORMS="cpu", SLURM_JOB_ID="7", SLURM_STEP_NODELIST="localhost")
    environment |= {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "1"}
    environment |= {"SLURM_STEP_TASKS_PER_NODE": tasks, "JAX_COORDINATOR_PORT": free_port()}
    environment |= {"OMPI_COMM_WORLD_LOCAL_SIZE": local}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [visible]


def test_a_signal_before_training_listens_ends_a_process():
    """JAX would take it and go on."""
    program = "import sys, time; from vaejax.runtime import distributed; distributed.initialize();"
    program += "print('joined', flush=True); time.sleep(60)"
    environment = dict(os.environ, JAX_PLATFORMS="cpu", JAX_NUM_PROCESSES="1", JAX_PROCESS_ID="0")
    environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    started = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
    assert started.stdout.readline() == b"joined\n"
    started.terminate()
    assert started.wait(30) == -signal.SIGTERM
