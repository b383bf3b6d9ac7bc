"""A host that registers one engine and then does nothing: `python silent_engine.py ENGINE_JSON`."""

from __future__ import annotations

import asyncio
import sys
import uuid

from enginery import _connection_file
from enginery._channel import open_channel
from enginery.v1 import engine_pb2, engine_pb2_grpc


async def main(path: str) -> None:
    """Register, say so on stdout, and wait."""
    info = _connection_file.read(path, "engine")
    async with open_channel(info) as channel:
        stream = engine_pb2_grpc.ControllerServiceStub(channel).RegisterEngine(metadata=info.metadata)
        hello = engine_pb2.Hello(host_id=str(uuid.uuid4()), incarnation=str(uuid.uuid4()), pid=1)
        await stream.write(engine_pb2.EngineMessage(hellos=[hello]))
        await stream.read()
        print("registered", flush=True)
        await stream.read()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
