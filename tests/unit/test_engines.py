"""What a client reads of the engines there are."""

from __future__ import annotations

from enginery.engines import from_message
from enginery.v1 import cluster_pb2


def test_properties_that_cannot_be_read() -> None:
    """They are left out: what one host says wrong does not hide its engines, nor those of others."""
    engine = cluster_pb2.Engine(engine_id=3)
    engine.properties["good"].json.number_value = 1
    engine.properties["none"].SetInParent()
    engine.properties["nan"].json.number_value = float("nan")
    engine.properties["empty"].pickle.SetInParent()
    engine.properties["blob"].blob.blob_id = "b"
    engine.properties["array"].ndarray.dtype = "<f8"
    engine.properties["array"].ndarray.data = b"123"
    assert from_message(engine).properties == {"good": 1}
