"""Engines as the processes of an MPI job, started by mpiexec."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import enginery
from enginery import errors
from enginery._channel import environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WAIT = 30.0  # seconds
_MPIEXEC = ("mpiexec", "--oversubscribe", "-n")
_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # only root is asked for it


@contextmanager
def mpi_engines(state_dir: Path, n: int) -> Iterator[tuple[enginery.Client, subprocess.Popen[str]]]:
    """A client of `n` engines, and the mpiexec that runs them."""
    with enginery.Cluster(0, state_dir=state_dir) as cluster:
        host = [sys.executable, "-m", "engine_service", "--mpi", "--state-dir", str(state_dir)]
        with subprocess.Popen(
            [*_MPIEXEC, str(n), *host],
            env=environment() | _AS_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as mpiexec:
            try:
                cluster.client.wait_for_engines(n, timeout=_WAIT)
                yield cluster.client, mpiexec
            finally:
                if mpiexec.poll() is None:
                    mpiexec.terminate()


def test_engines_of_an_mpi_job(tmp_path: Path) -> None:
    """An engine's id is its rank, `mpi` is the MPI module, and a sum over ranks runs inside `execute`."""
    with mpi_engines(tmp_path, 4) as (client, mpiexec):
        view = client[:]
        assert list(client.ids) == [0, 1, 2, 3]
        view.execute("world = mpi.COMM_WORLD\ntotal = world.allreduce(10 ** world.rank)")
        assert view.pull("total") == [1111] * 4
        assert view.pull("id") == [0, 1, 2, 3]
        view.reset()
        view.execute("import numpy\nsum = numpy.zeros(2)\nmpi.COMM_WORLD.Allreduce(numpy.ones(2), sum)")
        assert [list(found) for found in view.pull("sum")] == [[4.0, 4.0]] * 4
        view.kill()
        assert mpiexec.wait(_WAIT) == 0, mpiexec.stdout and mpiexec.stdout.read()


def test_a_process_of_mpi_is_not_replaced(tmp_path: Path) -> None:
    """When one dies the job ends, and all of its engines say goodbye: also those that wait in MPI."""
    with mpi_engines(tmp_path, 2) as (client, mpiexec):
        waiting = client[0].execute("print('in', flush=True); mpi.COMM_WORLD.barrier()", block=False)
        while not waiting.stdout:
            time.sleep(0.01)
        with pytest.raises(enginery.KernelDied, match="the engine ends"):
            client[1].execute("import os; os.kill(os.getpid(), 9)")
        with pytest.raises(errors.EngineStopped):
            waiting.result(timeout=_WAIT)
        assert mpiexec.wait(_WAIT) != 0
        deadline = time.monotonic() + _WAIT
        while len(client.ids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not list(client.ids)
