"""Uses of the client that must not type-check: mypy must complain about each line marked `refused`. Never
run."""

from __future__ import annotations

import enginery


def wrong(client: enginery.Client) -> None:
    view = client[0]
    client["some"]  # refused
    client[1.5]  # refused
    view.execute("1", False)  # refused
    view.execute(1)  # refused
    view.execute("1", block="no")  # refused
    text: str = view.apply(len, "abc")  # refused
    number: int = view.apply(len, "abc", block=False)  # refused
    view.push(1)  # refused
    view.push({1: 2})  # refused
    view.pull(1)  # refused
    view.get_result("1")  # refused
    view.execute("1", block=False).value  # refused  # noqa: B018
    client[:].execute("1").value  # refused  # noqa: B018
    view.execute("1", timeout="1")  # refused
    view.options(grace="1")  # refused
    view.execute("1", block=False).cancel("now")  # refused
    client.operations(state=1)  # refused
    client[:].scatter("a", [1], dist="random")  # refused
    client[:].map(len, 5)  # refused
    client[0].remote(len)(1)  # refused
    client[0].scatter("a", [1])  # refused
    enginery.reference(1)  # refused
    enginery.connect(errors="hide")  # refused
    enginery.connect(None, 5)  # refused
    print(text, number)
