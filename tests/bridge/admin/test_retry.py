"""The route that ends waits; as a command it is tried in tests/e2e/test_on_call.py."""

import json
from typing import Any

from bridge.admin.retry import retry_route
from bridge.admin.route import Request
from bridge.pipeline.supervisor import Running
from bridge.pipeline.threads import Pause


def ask(pauses: dict[str, Pause], body: bytes) -> tuple[int, Any]:
    route = retry_route(lambda: Running(pauses=pauses))
    answer = route.respond(Request("POST", "/-/retry", body=body))
    text = answer.body.decode()
    return answer.status, json.loads(text) if answer.status == 200 else text.strip()


def waiting(*, waits: bool) -> Pause:
    pause = Pause()
    pause.until = 1e10 if waits else None
    return pause


def ended(pause: Pause) -> bool:
    return pause._ended.is_set()


def test_those_that_wait_are_woken_and_no_others() -> None:
    pauses = {"stream-acme": waiting(waits=True), "stream-b": waiting(waits=False), "sink-a": waiting(waits=True)}

    assert ask(pauses, b'{"streams": ["acme", "b"]}') == (200, {"woken": ["stream-acme"]})
    assert [ended(pause) for pause in pauses.values()] == [True, False, False]
    assert ask(pauses, b"") == (200, {"woken": ["stream-acme", "sink-a"]})
    assert [ended(pause) for pause in pauses.values()] == [True, False, True]


def test_a_name_that_is_not_there_wakes_nobody() -> None:
    pauses = {"stream-acme": waiting(waits=True), "sink-acme": waiting(waits=True)}

    assert ask(pauses, b'{"streams": ["acme"], "sinks": ["b"]}') == (
        400,
        "there is no sink-b; there are stream-acme, sink-acme",
    )
    assert ask(pauses, b'{"stream": "acme"}')[0] == 400
    assert not any(map(ended, pauses.values()))
