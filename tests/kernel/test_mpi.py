"""A kernel that is a process of an MPI job; the job itself is in e2e/test_mpi.py."""

from __future__ import annotations

import os

import pytest

from engine_service.kernel_exit import KernelExited
from engine_service.kernel_process import KernelOptions
from tests.kernel.conftest import running


async def test_what_the_launcher_left_open_is_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some launchers talk with their processes over a descriptor that the environment names: PMI_FD."""
    read, write = os.pipe()
    try:
        monkeypatch.setenv("PMI_FD", str(write))
        async with running(KernelOptions(mpi=True)) as kernel:
            assert kernel.kernel.rank == 0
            assert (await kernel.ok("mpi.COMM_WORLD.Get_size()")).text == "1"
            await kernel.ok(f"import os; os.write({write}, b'from the kernel')")
            assert os.read(read, 100) == b"from the kernel"
            await kernel.run("reset")
            assert (await kernel.ok("mpi.COMM_WORLD.Get_rank()")).text == "0"
    finally:
        os.close(read)
        os.close(write)


async def test_a_machine_without_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it lacks is said in one line, without a traceback."""
    monkeypatch.setenv("MPI4PY_LIBMPI", "/nowhere/libmpi.so")
    with pytest.raises(KernelExited) as caught:
        async with running(KernelOptions(mpi=True)):
            pass
    assert "mpi4py finds no MPI on this machine" in str(caught.value)
    assert "Traceback" not in str(caught.value)
