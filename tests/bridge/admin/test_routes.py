"""The paths of the operations: what they take, what they say, and what is wrong with a request."""

import json
from collections.abc import Iterator
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.admin.route import Request, Response, Route
from bridge.admin.routes import Access, operation_routes
from bridge.event import Malformed
from bridge.journal import DEAD_LETTERS_PER_PAGE, Closed, Journal, JournalError, JournalExtent
from tests.support.journal_samples import append, bury, event, opened, uuid

SECRET = "of this start"
TOKEN = "geheim"
EVENTS = [event(number) for number in range(1, 11)]


@pytest.fixture
def routes(tmp_path: Path) -> Iterator[dict[str, Route]]:
    with opened(tmp_path / "journal.db", "alerts", "audit") as journal:
        append(journal, EVENTS, [Malformed("not_json", b"\xff")])
        bury(journal, "alerts", 1, EVENTS)
        yield operation_routes(journal)


def get(routes: dict[str, Route], path: str) -> Any:
    path, _, query = path.partition("?")
    return told(routes[path].respond(Request("GET", path, query)))


def post(routes: dict[str, Route], path: str, body: object) -> Any:
    return told(routes[path].respond(Request("POST", path, body=json.dumps(body).encode(), client="10.0.0.5")))


def told(answer: Response) -> Any:
    """The JSON of an answer, or its status and words."""
    if answer.content_type.startswith("application/json"):
        assert answer.status == 200
        return json.loads(answer.body)
    return answer.status, answer.body.decode().strip()


def test_every_path_has_a_method_and_others_have_none(routes: dict[str, Route]) -> None:
    gets = ["/dead-letters", "/retries", "/quarantine", "/journal", "/journal/events", "/journal/verify", "/journal/check"]
    posts = ["/dead-letters/replay", "/dead-letters/drop", "/journal/prune", "/sinks/rewind", "/sinks/skip"]

    assert {routes[path].method for path in gets} == {"GET"}
    assert {routes[path].method for path in posts} == {"POST"}
    assert routes.keys() == {*gets, *posts}


def test_dead_letters_are_listed_with_their_events(routes: dict[str, Route]) -> None:
    page = get(routes, "/dead-letters?sink=alerts&limit=2&after=1")

    assert [letter["id"] for letter in page["dead_letters"]] == [2, 3]
    assert page["next"] == 3
    assert page["dead_letters"][0]["event"]["uuid"] == uuid(2)
    assert page["dead_letters"][0]["received"] == "2026-11-23T10:00:00Z"


def test_the_retry_queue_is_read_in_pages(routes: dict[str, Route]) -> None:
    post(routes, "/dead-letters/replay", {"sink": "alerts", "ids": [2, 5, 9]})

    assert get(routes, "/retries?sink=alerts&limit=2") == {"retries": [2, 5], "next": 5}
    assert get(routes, "/retries?sink=alerts&limit=2&after=5") == {"retries": [9], "next": None}
    assert get(routes, "/retries?sink=audit") == {"retries": [], "next": None}
    assert get(routes, "/retries?sink=gone") == (409, "there is no sink gone")


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 10),
        ("reason=rejected&type=container", 10),
        ("reason=too_old", 0),
        ("since=3650d", 0),
        ("since=1970-01-01T00:00:00Z", 10),
        (f"uuid={uuid(4).upper()}", 1),
        ("sink=audit", 0),
        ("limit=1000000", 10),
    ],
)
def test_every_filter_filters(routes: dict[str, Route], query: str, count: int) -> None:
    assert len(get(routes, f"/dead-letters?{query}")["dead_letters"]) == count


def test_dead_letters_are_replayed_and_dropped(routes: dict[str, Route]) -> None:
    assert post(routes, "/dead-letters/replay", {"sink": "alerts", "ids": [1, 2]}) == {
        "taken": 2,
        "replayed": 2,
        "retrying": 2,
        "room": 500,
    }
    with capture_logs() as logs:
        assert post(routes, "/dead-letters/drop", {"ids": [2, 3, 4]}) == {"dropped": 2}
        assert post(routes, "/dead-letters/drop", {"ids": [3]}) == {"dropped": 0}
    assert [(line["operation"], line["client"], line["result"]) for line in logs] == [
        ("/dead-letters/drop", "10.0.0.5", '{"dropped":2}'),
        ("/dead-letters/drop", "10.0.0.5", '{"dropped":0}'),
    ]
    assert [letter["id"] for letter in get(routes, "/dead-letters")["dead_letters"]] == [5, 6, 7, 8, 9, 10]


def test_a_sink_is_set_back_and_an_event_set_aside(routes: dict[str, Route]) -> None:
    assert post(routes, "/sinks/rewind", {"sink": "alerts", "to": 8, "dry_run": True}) == {"first": 8, "events": 3}
    assert post(routes, "/sinks/rewind", {"sink": "alerts", "to": "2026-11-23T09:00:00Z"}) == {"first": 1, "events": 10}
    assert post(routes, "/sinks/skip", {"sink": "alerts"}) == {"skipped": 1}
    assert post(routes, "/sinks/rewind", {"sink": "alerts", "to": "soon"})[0] == 400
    assert post(routes, "/sinks/skip", {"sink": "other"})[0] == 409


def test_stored_events_and_malformed_messages_are_shown(routes: dict[str, Route]) -> None:
    events = get(routes, "/journal/events?after=8&limit=100")

    assert ([each["seq"] for each in events["events"]], events["upto"], events["damaged"]) == ([9, 10], 10, 0)
    assert events["events"][0]["event"] == json.loads(EVENTS[8].json)
    assert get(routes, "/quarantine")["quarantine"][0]["frame"] == "/w=="
    assert (get(routes, "/journal")["first"], get(routes, "/journal")["next"]) == (1, 11)


def test_the_journal_is_verified_and_pruned(routes: dict[str, Route]) -> None:
    assert get(routes, "/journal/verify?after=0&limit=5") == {"upto": 10, "events": 10, "damaged": []}
    assert get(routes, "/journal/check") == {"damage": None}
    assert post(routes, "/journal/prune", {}).keys() == {"freed"}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/dead-letters?limit=x", "limit: "),
        ("/dead-letters?limit=0", "limit: "),
        ("/dead-letters?after=-1", "after: "),
        ("/dead-letters?after=99999999999999999999", "after: "),
        ("/dead-letters?reason=bad", "reason: "),
        ("/dead-letters?since=yesterday", "since: must be a time"),
        ("/dead-letters?uuid=1", "uuid: "),
        ("/dead-letters?snik=alerts", "`snik`"),
        ("/dead-letters?limit=1&limit=2", "twice"),
        ("/dead-letters?limit", "name=value"),
        ("/dead-letters?sink=%ff", "name=value"),
        ("/quarantine?x=1", "`x`"),
        ("/journal?x=1", "`x`"),
        ("/journal/events?limit=", "limit: "),
        ("/journal/verify?after=1.5", "after: "),
        ("/journal/check?x=1", "`x`"),
    ],
)
def test_a_senseless_parameter_is_told_by_name(routes: dict[str, Route], path: str, said: str) -> None:
    status, words = get(routes, path)

    assert status == 400
    assert said in words


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/dead-letters/replay", b'{"ids":[1]}', "sink"),
        ("/dead-letters/replay", b'{"sink":"alerts","ids":["1"]}', "ids[0]: "),
        ("/dead-letters/replay", b'{"sink":"alerts","ids":[]}', "ids: "),
        ("/dead-letters/drop", b'{"ids":[-1]}', "ids[0]: "),
        ("/dead-letters/drop", json.dumps({"ids": [1] * (DEAD_LETTERS_PER_PAGE + 1)}).encode(), "ids: "),
        ("/dead-letters/drop", b'{"ids":[1],"all":true}', "`all`"),
        ("/dead-letters/drop", b'{"ids":[1', "not JSON"),
        ("/dead-letters/drop", b"\xff", "not JSON"),
        ("/dead-letters/drop", b"", "not JSON"),
        ("/dead-letters/drop", b'{"ids":' + b"[" * 60_000, "ids[0]: "),
        ("/journal/prune", b"[]", "object"),
    ],
)
def test_a_senseless_body_changes_nothing_and_is_told(routes: dict[str, Route], path: str, body: bytes, said: str) -> None:
    answer = routes[path].respond(Request("POST", path, body=body))

    assert answer.status == 400
    assert said in answer.body.decode()
    assert len(get(routes, "/dead-letters")["dead_letters"]) == 10


def test_a_sink_that_is_not_configured_is_a_conflict(routes: dict[str, Route]) -> None:
    status, words = post(routes, "/dead-letters/replay", {"sink": "other", "ids": [1]})

    assert (status, words) == (409, "no sink other is configured, so that nothing can be sent to it again")


def test_trouble_with_the_journal_is_told(routes: dict[str, Route], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Journal) -> JournalExtent:
        raise JournalError("disk I/O error")

    monkeypatch.setattr(Journal, "extent", fails)

    assert get(routes, "/journal") == (503, "disk I/O error")


def test_a_process_that_stops_says_so_elsewhere(routes: dict[str, Route], monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(_: Journal) -> JournalExtent:
        raise Closed

    monkeypatch.setattr(Journal, "extent", stops)

    with pytest.raises(Closed):
        get(routes, "/journal")


# --- who may ------------------------------------------------------------------------------------------------------------


def refuse(headers: Message, token: str | None, *, needed: bool = True) -> Response | None:
    return Access(SECRET, lambda: token, lambda _: None).refusal(headers, needed=needed)


def ask(headers: dict[str, str], token: str | None = TOKEN) -> HTTPStatus | None:
    """The status of the refusal; None if there is none."""
    message = Message()
    for name, value in headers.items():
        message[name] = value
    refusal = refuse(message, token)
    if refusal is not None:
        assert refusal.body.endswith(b"\n")
        assert TOKEN.encode() not in refusal.body
        assert SECRET.encode() not in refusal.body
    return refusal and refusal.status


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("given", [TOKEN, SECRET])
def test_a_client_with_a_token_may_from_anywhere_by_any_name(scheme: str, given: str) -> None:
    assert ask({"Host": "bridge.example:9477", "X-Forwarded-For": "10.0.0.5", "Authorization": f"{scheme} {given}"}) is None


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer x{TOKEN}",
        "Bearer gehei",
        "Bearer ŋ",
    ],
)
@pytest.mark.parametrize("token", [TOKEN, None])
def test_nobody_else_may(given: str | None, token: str | None) -> None:
    headers = {"Host": "127.0.0.1:9477"} if given is None else {"Host": "127.0.0.1:9477", "Authorization": given}
    if token is None and given is not None:
        headers["Authorization"] = given.replace(TOKEN, "None")

    assert ask(headers, token) == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("token", [TOKEN, None])
def test_a_client_without_a_token_is_told_how(token: str | None) -> None:
    refusal = refuse(Message(), token)

    assert refusal is not None
    assert refusal.headers["WWW-Authenticate"].startswith("Bearer ")
    assert b"http.token, as" in refusal.body


@pytest.mark.parametrize(
    ("given", "status"),
    [(None, None), (f"Bearer {TOKEN}", None), ("Basic eDp5", None), ("Bearer other", HTTPStatus.UNAUTHORIZED)],
)
def test_what_is_open_to_all_is_no_place_to_try_tokens(given: str | None, status: HTTPStatus | None) -> None:
    headers = Message()
    if given:
        headers["Authorization"] = given

    refusal = refuse(headers, TOKEN, needed=False)

    assert (refusal and refusal.status) == status
