"""`python -m controller_service`: the command `enginery controller`."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import shlex
import sys
from typing import TYPE_CHECKING

from enginery._channel import prepare_grpc

if TYPE_CHECKING:
    import argparse

prepare_grpc()  # before anything imports grpc

from controller_service import config as options  # noqa: E402
from controller_service.app import Controller  # noqa: E402
from enginery import _logs  # noqa: E402
from enginery._malloc import keep_freed  # noqa: E402
from enginery._stopping import StopReason, StopRequest  # noqa: E402
from enginery.errors import EngineryError  # noqa: E402

logger = logging.getLogger("controller_service")

_OBJECTS_AT_ONCE = 10_000  # new ones after which the collector looks, for 1 ms; by default it is 700


def main(argv: list[str] | None = None) -> int:
    """Run a controller until it is told to stop; return the exit code."""
    arguments = options.parser().parse_args(argv)
    _raise_descriptor_limit()
    keep_freed()
    try:
        return asyncio.run(_run(arguments))
    except (EngineryError, OSError) as error:  # OSError: a full disk, for one
        print(f"enginery controller: {error}", file=sys.stderr)
        return 1


async def _run(arguments: argparse.Namespace) -> int:
    controller = Controller(options.from_arguments(arguments))
    controller.state.prepare()
    log_file, log_fd = arguments.log_file, -1
    if log_file is None:
        log_file, log_fd = _logs.claim(controller.state.logs, "controller")
    _logs.setup("controller", arguments.log_level, log_file, arguments.log_format)
    try:
        with StopRequest(life_line=arguments.life_line) as stop:
            await controller.start()
            gc.freeze()  # what is here now stays, and need not be looked at again and again
            gc.set_threshold(_OBJECTS_AT_ONCE)
            if not arguments.life_line:
                print(_grpcurl(controller), flush=True)
            reason = await _wait(controller, stop)
            if reason is not None:
                logger.info("stopping: %s", reason.text)
            await controller.stop()
            return 0 if reason is None else reason.exit_code
    finally:
        if log_fd >= 0:
            os.close(log_fd)


async def _wait(controller: Controller, stop: StopRequest) -> StopReason | None:
    """Return why to stop; None if the controller has stopped by itself."""
    asked = asyncio.create_task(stop.wait())
    stopped = asyncio.create_task(controller.wait_stopped())
    await asyncio.wait({asked, stopped}, return_when=asyncio.FIRST_COMPLETED)
    for task in (asked, stopped):
        task.cancel()
    results = await asyncio.gather(asked, stopped, return_exceptions=True)
    return results[0] if isinstance(results[0], StopReason) else None


def _grpcurl(controller: Controller) -> str:
    """Return a command that a person can paste to try the cluster, without a secret in it."""
    execute = """-H 'enginery-engine-id: 0' -d '{"code": "1+1"}'"""
    method = "enginery.v1.EngineService/Execute"
    state = controller.state
    if state.client_socket is not None:
        return f"grpcurl -plaintext -unix {execute} {shlex.quote(str(state.client_socket))} {method}"
    token = f"""ENGINERY_TOKEN="$(python3 -c 'import json,sys;print(json.load(open(sys.argv[1]))["token"])' \
{shlex.quote(str(state.client_file))})\""""
    header = "-expand-headers -H 'authorization: Bearer ${ENGINERY_TOKEN}'"
    if controller.config.insecure:
        return f"{token} grpcurl -plaintext {header} {execute} {controller.address} {method}"
    ca = shlex.quote(str(state.path / "ca.pem"))
    return f"{token} grpcurl -cacert {ca} {header} {execute} {controller.address} {method}"


def _raise_descriptor_limit() -> None:
    """Allow as many open files as the system does: each engine host takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
