import subprocess
import sys
import textwrap
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from bridge.sink import Entry, Failure, Unavailable
from sinks.webhook.settings import WebhookSettings
from sinks.webhook.sink import WebhookSink
from tests.contract.harness import make_entries, make_entry
from tests.support.servers.receiver import Receiver, Request, make_certificate, reply, server_context
from tests.support.waiting import until

Make = Callable[..., WebhookSink]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def open_sink(receiver: Receiver) -> Iterator[Make]:
    sinks = []

    def make(**settings: Any) -> WebhookSink:
        sink = WebhookSink("hook", WebhookSettings.model_validate({"url": receiver.url} | settings))
        sinks.append(sink)
        sink.open()
        return sink

    yield make
    for sink in sinks:
        sink.close()


def uuids(entries: Sequence[Entry]) -> set[str]:
    return {entry.fields.uuid for entry in entries}


def received(receiver: Receiver) -> list[str]:
    return [uuid for request in receiver.requests for uuid in request.uuids]


def outcomes(failures: Sequence[Failure]) -> dict[int, str]:
    return {failure.seq: failure.outcome for failure in failures}


def silent_for(receiver: Receiver, entries: Sequence[Entry]) -> Callable[[Request], bytes | None]:
    """Answer everything but the requests with one of these events; those hang until the receiver is stopped."""
    silent = uuids(entries)
    never = threading.Event()

    def answer(request: Request) -> bytes | None:
        if silent.isdisjoint(request.uuids):
            return reply(200)
        while receiver.running:
            never.wait(0.02)
        return None

    return answer


def test_a_request_says_who_sends_what(receiver: Receiver, open_sink: Make) -> None:
    entry = make_entry(1)
    sink = open_sink(url=receiver.url + "?room=7", method="PUT", headers={"X-Key": "k"}, username="u", password="p")

    assert sink.deliver([entry]) == []

    request = receiver.requests[0]
    assert (request.method, request.target, request.body) == ("PUT", "/hook?room=7", entry.json)
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("event-bridge/")
    assert request.headers["webhook-id"] == entry.fields.uuid
    assert request.headers["authorization"] == "Basic dTpw"
    assert request.headers["x-key"] == "k"


@pytest.mark.parametrize("form", ["batch", "lines"])
def test_a_repeated_batch_has_the_same_id(receiver: Receiver, open_sink: Make, form: str) -> None:
    entries = make_entries(5)
    sink = open_sink(format=form)

    sink.deliver(entries)
    sink.deliver(entries)
    sink.deliver(entries[:4])
    sink.deliver(entries[:1])

    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert ids[0] == ids[1] == str(uuid.UUID(ids[0]))
    assert len(set(ids)) == 3
    assert ids[3] == entries[0].fields.uuid


def test_batches_keep_to_both_limits(receiver: Receiver, open_sink: Make) -> None:
    entries = make_entries(10) + [make_entry(seq, note="x" * 3000) for seq in (11, 12, 13)]
    sink = open_sink(format="batch", batch={"max_events": 4, "max_bytes": 5000})

    assert sink.deliver(entries) == []

    assert [len(request.events) for request in receiver.requests] == [4, 4, 3, 1, 1]
    assert received(receiver) == [entry.fields.uuid for entry in entries]


def test_as_many_requests_as_connections_are_under_way(receiver: Receiver, open_sink: Make) -> None:
    entries = make_entries(40, resources=40)
    sink = open_sink(connections=3)
    receiver.gate.clear()
    delivery = threading.Thread(target=sink.deliver, args=(entries,), daemon=True)
    delivery.start()
    until(lambda: len(receiver.requests) == 3)
    delivery.join(0.2)
    assert len(receiver.requests) == 3

    receiver.gate.set()
    delivery.join(10)

    assert sorted(received(receiver)) == sorted(uuids(entries))
    assert len({request.connection for request in receiver.requests}) == 3


@pytest.mark.parametrize(("ordering", "under_way"), [("resource", 1), ("none", 4)])
@pytest.mark.parametrize("form", ["event", "batch"])
def test_events_of_one_resource_are_under_way_one_after_another_unless_order_does_not_matter(
    receiver: Receiver, open_sink: Make, form: str, ordering: str, under_way: int
) -> None:
    entries = make_entries(20, resources=1)
    sink = open_sink(ordering=ordering, format=form, batch={"max_events": 2})
    receiver.gate.clear()
    delivery = threading.Thread(target=sink.deliver, args=(entries,), daemon=True)
    delivery.start()
    until(lambda: len(receiver.requests) == under_way)
    delivery.join(0.1)
    assert len(receiver.requests) == under_way

    receiver.gate.set()
    delivery.join(10)

    assert sorted(received(receiver)) == sorted(uuids(entries))


def test_without_order_a_failure_holds_nothing(receiver: Receiver, open_sink: Make) -> None:
    entries = make_entries(6, resources=1)
    receiver.answer = lambda request: reply(500 if request.uuids == [entries[1].fields.uuid] else 200)

    assert outcomes(open_sink(ordering="none").deliver(entries)) == {2: "retry"}

    assert sorted(received(receiver)) == sorted(uuids(entries))


def test_a_rejected_event_holds_nothing(receiver: Receiver, open_sink: Make) -> None:
    entries = make_entries(6, resources=1)
    receiver.answer = lambda request: reply(400 if request.uuids == [entries[1].fields.uuid] else 200)

    failures = open_sink().deliver(entries)

    assert [(failure.seq, failure.outcome, failure.error) for failure in failures] == [
        (2, "rejected", f"localhost:{receiver.port} answered 400 Bad Request")
    ]
    assert received(receiver) == [entry.fields.uuid for entry in entries]


def test_a_batch_that_is_too_large_is_sent_in_halves(receiver: Receiver, open_sink: Make) -> None:
    entries = [*make_entries(15), make_entry(16, note="x" * 9000)]
    receiver.answer = lambda request: reply(413 if len(request.body) > 2000 else 204)

    failures = open_sink(format="batch").deliver(entries)

    assert [(failure.seq, failure.outcome, failure.reason) for failure in failures] == [(16, "rejected", "too_large")]
    taken = [uuid for request in receiver.requests if len(request.body) <= 2000 for uuid in request.uuids]
    assert taken == [entry.fields.uuid for entry in entries[:15]]


def test_a_batch_that_fails_is_retried_and_what_follows_of_its_resources_held(receiver: Receiver, open_sink: Make) -> None:
    entries = make_entries(12, resources=4)
    receiver.answer = lambda _: reply(500, Retry_After="9") if len(receiver.requests) == 2 else reply(200)

    failures = open_sink(format="batch", batch={"max_events": 3}).deliver(entries)

    # The second batch is 4, 5, 6, which are of the resources 0, 1, 2; the fourth has one more of resource 3 only.
    assert outcomes(failures) == {4: "retry", 5: "retry", 6: "retry", 8: "held", 9: "held", 10: "held", 12: "held"}
    assert {failure.retry_after for failure in failures if failure.outcome == "retry"} == {9}


def test_a_receiver_that_asks_for_patience_is_unavailable(receiver: Receiver, open_sink: Make) -> None:
    entries = make_entries(30, resources=1)
    receiver.answer = lambda _: reply(200) if len(receiver.requests) <= 10 else reply(503, Retry_After="7")

    with pytest.raises(Unavailable, match="answered 503 Service Unavailable") as unavailable:
        open_sink().deliver(entries)

    assert unavailable.value.reason == "server_error"
    assert unavailable.value.retry_after == 7
    assert set(unavailable.value.delivered) == set(range(1, 11))
    assert len(receiver.requests) == 11


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(401), "unauthorized"),
        (reply(404), "not_found"),
        (reply(302, Location="https://login.example.com/?token=geheim"), "not_found"),
        (reply(429, Retry_After="1"), "throttled"),
        (b"not HTTP at all\r\n\r\n", "server_error"),
        (None, "unreachable"),
    ],
)
def test_a_fault_of_the_receiver_is_said_without_secrets(
    receiver: Receiver, open_sink: Make, answer: bytes | None, reason: str
) -> None:
    receiver.answer = lambda _: answer
    sink = open_sink(url=receiver.url + "/geheim?token=geheim", token="geheim", headers={"X-Key": "geheim"})

    with pytest.raises(Unavailable) as unavailable:
        sink.deliver([make_entry(1)])

    assert unavailable.value.reason == reason
    assert f"localhost:{receiver.port}" in str(unavailable.value)
    assert "geheim" not in str(unavailable.value) + repr(sink)


def test_an_event_that_hangs_while_others_are_answered_is_to_blame_itself(receiver: Receiver, open_sink: Make) -> None:
    entries = make_entries(14)
    receiver.answer = silent_for(receiver, entries[4:5])
    sink = open_sink(timeout=0.3)

    failures = sink.deliver(entries)

    assert outcomes(failures) == {5: "retry", 12: "held"}
    assert {failure.reason for failure in failures if failure.outcome == "retry"} == {"timeout"}
    # Offered again it may be alone, and still does not make the receiver unavailable.
    sink.close()
    sink.open()
    assert outcomes(sink.deliver(entries[4:5])) == {5: "retry"}


def test_a_receiver_that_answers_nothing_is_unavailable_after_two_rounds_at_most(receiver: Receiver, open_sink: Make) -> None:
    entries = make_entries(50)
    receiver.gate.clear()
    sink = open_sink(timeout=0.3)

    with pytest.raises(Unavailable, match=r"did not answer within 0\.3 s") as unavailable:
        sink.deliver(entries)

    assert unavailable.value.reason == "timeout"
    assert not unavailable.value.delivered
    assert 4 <= len(receiver.requests) <= 8
    with pytest.raises(Unavailable):
        sink.deliver(entries[:1])


def test_a_receiver_that_falls_silent_is_unavailable_with_what_it_acknowledged(receiver: Receiver, open_sink: Make) -> None:
    entries = make_entries(30, resources=1)
    receiver.answer = silent_for(receiver, entries[10:])

    with pytest.raises(Unavailable) as unavailable:
        open_sink(timeout=0.3, ordering="none", connections=1).deliver(entries)

    assert unavailable.value.reason == "timeout"
    assert set(unavailable.value.delivered) == set(range(1, 11))
    assert len(receiver.requests) == 12


def test_a_receiver_that_refuses_a_batch_has_answered(receiver: Receiver, open_sink: Make) -> None:
    sink = open_sink(format="batch", timeout=0.3)
    sink.deliver(make_entries(1))
    receiver.answer = lambda request: reply(413) if len(request.uuids) > 1 else None

    assert outcomes(sink.deliver(make_entries(2, resources=1))) == {1: "retry", 2: "held"}


@pytest.mark.parametrize("hanging", [1, 2, 5])
def test_events_that_hang_at_the_head_do_not_keep_the_others_from_being_tried(
    receiver: Receiver, open_sink: Make, hanging: int
) -> None:
    entries = waiting = make_entries(30, resources=30)
    receiver.answer = silent_for(receiver, entries[:hanging])
    sink = open_sink(timeout=0.1, connections=1)
    failures: Sequence[Failure] = []

    for _ in range(4):
        try:
            failures = sink.deliver(waiting)
            break
        except Unavailable as unavailable:
            waiting = [entry for entry in waiting if entry.seq not in unavailable.delivered]

    assert outcomes(failures) == dict.fromkeys(range(1, hanging + 1), "retry")
    assert set(received(receiver)) == uuids(entries)
    assert outcomes(sink.deliver(entries[:hanging])) == dict.fromkeys(range(1, hanging + 1), "retry")


def cuts_at(entries: Sequence[Entry]) -> Callable[[Request], bytes | None]:
    """Answer everything but the requests with one of these events; those end with the connection."""
    poison = uuids(entries)
    return lambda request: reply(200) if poison.isdisjoint(request.uuids) else None


@pytest.mark.parametrize("poison", [1, 2, 5])
def test_events_that_cut_every_connection_wait_and_all_others_arrive(receiver: Receiver, open_sink: Make, poison: int) -> None:
    entries = waiting = make_entries(30, resources=30)
    receiver.answer = cuts_at(entries[:poison])
    sink = open_sink(connections=1)
    failures: Sequence[Failure] = []

    for _ in range(4):
        try:
            failures = sink.deliver(waiting)
            break
        except Unavailable as unavailable:
            waiting = [entry for entry in waiting if entry.seq not in unavailable.delivered]

    assert outcomes(failures) == dict.fromkeys(range(1, poison + 1), "retry")
    assert uuids(entries) <= set(received(receiver))


def test_an_event_that_got_no_answer_is_to_blame_when_the_receiver_answers_the_next_ones(
    receiver: Receiver, open_sink: Make
) -> None:
    poison, *others = make_entries(3, resources=3)
    receiver.answer = cuts_at([poison])
    sink = open_sink()

    with pytest.raises(Unavailable):
        sink.deliver([poison])
    with pytest.raises(Unavailable):
        sink.deliver([poison])
    assert sink.deliver(others) == []
    assert outcomes(sink.deliver([poison])) == {poison.seq: "retry"}


def test_a_receiver_that_cuts_every_connection_is_unavailable(receiver: Receiver, open_sink: Make) -> None:
    entries = make_entries(50)
    receiver.answer = cuts_at(entries)

    with pytest.raises(Unavailable, match="closed the connection instead of an answer") as unavailable:
        open_sink().deliver(entries)

    assert unavailable.value.reason == "unreachable"


def test_opening_proves_the_way_without_a_request(receiver: Receiver, open_sink: Make) -> None:
    sink = open_sink()
    until(lambda: receiver.connections == 1)
    assert receiver.requests == []
    sink.close()
    receiver.stop()

    with pytest.raises(Unavailable, match=f"localhost:{receiver.port}: Connection refused") as unavailable:
        sink.open()

    assert unavailable.value.reason == "unreachable"


def test_a_client_certificate_is_shown_and_the_receivers_is_checked(tmp_path: Path) -> None:
    server, client = make_certificate(tmp_path), make_certificate(tmp_path, "bridge")
    receiver = Receiver(server_context(*server, clients=client[0]))
    tls = {"ca_file": str(server[0]), "cert_file": str(client[0]), "key_file": str(client[1])}
    sink = WebhookSink("hook", WebhookSettings.model_validate({"url": receiver.url} | tls))
    stranger = WebhookSink("hook", WebhookSettings.model_validate({"url": receiver.url, "ca_file": str(server[0])}))
    doubter = WebhookSink("hook", WebhookSettings.model_validate({"url": receiver.url}))

    sink.open()
    assert sink.deliver(make_entries(20)) == []
    assert len({request.connection for request in receiver.requests}) <= 4
    # With TLS 1.3 the receiver looks at the client's certificate after the client is done.
    stranger.open()
    with pytest.raises(Unavailable) as refused:
        stranger.deliver([make_entry(1)])
    with pytest.raises(Unavailable, match="the certificate is not accepted") as doubted:
        doubter.open()

    assert doubted.value.reason == "tls"
    assert refused.value.reason in {"tls", "unreachable"}
    for each in (sink, stranger, doubter):
        each.close()
    receiver.stop()


def test_closing_ends_a_delivery_that_hangs(receiver: Receiver, open_sink: Make) -> None:
    receiver.gate.clear()
    sink = open_sink(timeout=60)
    ended: list[Unavailable] = []

    def hang() -> None:
        try:
            sink.deliver(make_entries(20))
        except Unavailable as unavailable:
            ended.append(unavailable)

    delivery = threading.Thread(target=hang, daemon=True)
    delivery.start()
    until(lambda: len(receiver.requests) == 4)
    sink.close()
    delivery.join(10)

    assert [unavailable.reason for unavailable in ended] == ["unreachable"]


HANGING = """
    import sys, threading
    from sinks.webhook.sink import WebhookSink
    from sinks.webhook.settings import WebhookSettings
    from tests.contract.harness import make_entries

    sink = WebhookSink("hook", WebhookSettings(url=sys.argv[1], timeout=600))
    sink.open()
    threading.Thread(target=sink.deliver, args=(make_entries(20),), daemon=True).start()
    sys.stdin.readline()
"""


def test_the_process_does_not_wait_for_requests_that_hang(receiver: Receiver) -> None:
    receiver.gate.clear()
    root = Path(__file__).parents[3]
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(HANGING), receiver.url], stdin=subprocess.PIPE, cwd=root)
    until(lambda: len(receiver.requests) == 4)

    child.communicate(b"\n", timeout=30)

    assert child.returncode == 0


def test_a_bug_is_raised_and_not_taken_for_an_acknowledgement(open_sink: Make) -> None:
    sink = open_sink()

    with pytest.raises(Exception, match="truncated") as bug:
        sink.deliver([*make_entries(3), Entry(4, 0.0, b"{"), *make_entries(3)])

    assert not isinstance(bug.value, Unavailable)
    assert sink.deliver(make_entries(3)) == []


@pytest.mark.parametrize("form", ["event", "batch", "lines"])
@pytest.mark.parametrize("status", [400, 403, 415, 422, 500])
def test_a_receiver_that_has_accepted_nothing_is_unavailable_whatever_it_says(
    receiver: Receiver, open_sink: Make, status: int, form: str
) -> None:
    receiver.answer = lambda _: reply(status, b"The SSL certificate error")
    sink = open_sink(format=form, batch={"max_events": 3})

    for _ in range(2):
        with pytest.raises(Unavailable, match=f"answered {status} [^:]+: The SSL certificate error"):
            sink.deliver(make_entries(60, resources=60))

    assert len(receiver.requests) < 60


def test_the_first_event_that_a_receiver_rejects_waits_until_it_accepts_another(receiver: Receiver, open_sink: Make) -> None:
    bad, *others = make_entries(3, resources=3)
    receiver.answer = lambda request: reply(400 if request.uuids == [bad.fields.uuid] else 200)
    sink = open_sink()

    with pytest.raises(Unavailable, match="answered 400"):
        sink.deliver([bad])
    assert outcomes(sink.deliver([bad, *others])) == {bad.seq: "rejected"}
    assert outcomes(sink.deliver([bad])) == {bad.seq: "rejected"}
    sink.open()
    assert outcomes(sink.deliver([bad])) == {bad.seq: "rejected"}


def test_a_receiver_that_fails_for_ten_events_and_takes_none_is_unavailable(receiver: Receiver, open_sink: Make) -> None:
    receiver.answer = lambda _: reply(500)

    entries = make_entries(10, resources=10)
    sink = open_sink()

    for entry in entries[:9]:
        assert outcomes(sink.deliver([entry])) == {entry.seq: "retry"}
    with pytest.raises(Unavailable, match="answered 500"):
        sink.deliver(entries[9:])


@pytest.mark.parametrize("form", ["event", "batch", "lines"])
def test_an_event_that_is_forbidden_while_others_are_accepted_is_to_blame_itself(
    receiver: Receiver, open_sink: Make, form: str
) -> None:
    # As a web application firewall does.
    entries = make_entries(40, resources=40)
    receiver.answer = lambda request: reply(403 if entries[0].fields.uuid in request.uuids else 200)
    sink = open_sink(format=form)

    assert outcomes(sink.deliver(entries)) == {1: "retry"}
    # Offered again it may be alone, and still does not make the receiver unavailable.
    sink.close()
    sink.open()
    (failure,) = sink.deliver(entries[:1])

    assert (failure.outcome, failure.reason) == ("retry", "unauthorized")


def test_a_forbidden_event_that_comes_alone_does_not_keep_the_next_ones_from_being_sent(
    receiver: Receiver, open_sink: Make
) -> None:
    bad, *others = make_entries(3, resources=3)
    receiver.answer = lambda request: reply(403 if request.uuids == [bad.fields.uuid] else 200)
    sink = open_sink()

    assert sink.deliver(others) == []
    with pytest.raises(Unavailable, match="403 Forbidden") as unavailable:
        sink.deliver([bad])
    assert unavailable.value.reason == "unauthorized"
    assert outcomes(sink.deliver([bad, *others])) == {bad.seq: "retry"}


def test_what_the_receiver_says_has_no_credentials_in_it(receiver: Receiver, open_sink: Make) -> None:
    def echo(request: Request) -> bytes:
        said = f"{request.method} {request.target} {request.headers}\x1b[31m"
        return reply(422 if request.uuids[0] in bad else 200, said.encode())

    hook = "/services/T0B1geheimC2D3E4"
    sink = open_sink(url=f"{receiver.url}{hook}?key=gehe%69m", username="u", password="geheim", headers={"X": "geheim"})
    entries = make_entries(20)
    bad = uuids(entries[::2])

    receiver.answer = echo

    failures = sink.deliver(entries)

    assert len(failures) == 10
    for failure in failures:
        assert "POST /hook/services/***?key=***" in failure.error
        assert "geheim" not in failure.error
        assert "gehe%69m" not in failure.error
        assert "dTpnZWhlaW0=" not in failure.error
        assert failure.error.isprintable()


class OneByOne(BaseHTTPRequestHandler):
    """Serves one connection at a time, each to its end."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_receiver_with_one_worker_is_not_blocked_by_an_open_sink() -> None:
    with HTTPServer(("127.0.0.1", 0), OneByOne) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        sink = WebhookSink("hook", WebhookSettings(url=url, connections=1))
        sink.open()

        with urllib.request.urlopen(urllib.request.Request(url, b"{}", headers={"Connection": "close"}), timeout=10) as answer:
            assert answer.status == 200
        assert sink.deliver(make_entries(20)) == []

        sink.close()
        server.shutdown()


def test_a_missing_or_wrong_file_is_named(receiver: Receiver, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, password="secret")
    (tmp_path / "empty").touch()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ca_file": tmp_path / "none"}, f"ca_file {tmp_path}/none: No such file"),
        ({"ca_file": tmp_path / "empty"}, f"ca_file {tmp_path}/empty: "),
        ({"cert_file": tmp_path / "none"}, f"cert_file {tmp_path}/none: not usable with its key: "),
        ({"cert_file": certificate, "key_file": key}, "not usable with its key: "),
        ({"cert_file": certificate, "key_file": key, "key_password": "geheim"}, "not usable with its key: "),
    ]
    for given, words in cases:
        sink = WebhookSink("hook", WebhookSettings.model_validate({"url": f"https://localhost:{receiver.port}/"} | given))
        with pytest.raises(Unavailable, match=words) as unavailable:
            sink.open()
        assert unavailable.value.reason == "tls"
        assert "geheim" not in str(unavailable.value)
