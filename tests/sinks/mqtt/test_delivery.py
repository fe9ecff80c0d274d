from collections import defaultdict
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.sink import Entry, Failure
from sinks.mqtt.delivery import Delivery
from sinks.mqtt.packets import FAILED, PUBACK, PUBCOMP, PUBREC
from sinks.mqtt.publication import Publication
from sinks.ordering import group
from tests.contract.harness import make_entry
from tests.contract.mqtt_broker import parse_packets

ENTRIES = [make_entry(seq, f"web-{seq % 5}") for seq in range(40)]
CODES = [0, 0, 0, 0, 0, 0x10, 0x80, 0x87, 0x90, 0x97]
"""What a broker answers: mostly that all is well."""


def publish(entry: Entry, _alone: bool = False) -> list[Publication] | Failure:
    """The event, and for some a second publication; one is impossible."""
    if entry.seq == 17:
        return Failure.rejected(entry, "too_large", "too large")
    event = Publication(b"events", entry.json, retain=False, properties=b"")
    return [Publication(b"states", entry.json, retain=True, properties=b""), event] if entry.seq % 3 else [event]


def publish_alone(some: set[int], entry: Entry, alone: bool) -> list[Publication] | Failure | int:
    """The same, but with some only if they are alone."""
    return publish(entry) if alone or entry.seq not in some else entry.seq % 3


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([1, 2]), st.integers(1, 12), st.sets(st.integers(0, 39), max_size=6))
def test_whatever_a_broker_answers_order_and_window_are_kept_and_nothing_is_forgotten(
    data: st.DataObject, qos: int, window: int, broke: set[int]
) -> None:
    delivered = set[int]()
    delivery = Delivery(group(ENTRIES, ordered=True), partial(publish_alone, broke), delivered, qos=qos, window=window)
    by_json = {entry.json: entry for entry in ENTRIES}
    flying: dict[int, Entry] = {}
    sent: list[Entry] = []
    topics: dict[int, list[str]] = defaultdict(list)
    refused: set[int] = set()
    while True:
        for publication in parse_packets(delivery.fill(0.0)):
            entry = by_json[publication.payload]
            assert publication.packet_id not in flying
            assert entry.seq not in refused, "published although something of it was refused"
            assert entry not in flying.values(), "published before what comes first was acknowledged"
            flying[publication.packet_id] = entry
            sent.append(entry)
            topics[entry.seq].append(publication.topic)
        if delivery.done:
            break
        assert 0 < len(flying) <= window
        open_now = {entry.seq: entry.fields.resource_uri for entry in flying.values()}
        assert len(set(open_now.values())) == len(open_now), "two events of one resource on their way"
        assert len(open_now) == 1 or not broke & open_now.keys(), "one that goes last is not alone"
        packet_id = data.draw(st.sampled_from(sorted(flying)))
        code = data.draw(st.sampled_from(CODES))
        if qos == 1:
            assert delivery.acknowledge(PUBACK, packet_id, code, 0.0) == b""
        elif delivery.acknowledge(PUBREC, packet_id, code, 0.0):
            delivery.acknowledge(PUBCOMP, packet_id, 0, 0.0)
        seq = flying.pop(packet_id).seq
        refused |= {seq} if code >= FAILED else set()

    failed = {failure.seq: failure.outcome for failure in delivery.failures}
    assert not delivered & failed.keys()
    assert all(topics[seq] == (["states", "events"] if seq % 3 else ["events"]) for seq in delivered)
    if delivery.unavailable is None:
        assert delivered | failed.keys() == {entry.seq for entry in ENTRIES}
    outcomes = defaultdict(list)
    for entry in ENTRIES:
        outcomes[entry.fields.resource_uri].append(failed.get(entry.seq))
    for lane in outcomes.values():
        behind = lane[lane.index("retry") + 1 :] if "retry" in lane else []
        assert set(behind) <= {"held"}
    order = defaultdict(list)
    for seq in dict.fromkeys(entry.seq for entry in sent):
        order[seq % 5].append(seq)
    assert all(seqs == sorted(seqs) for seqs in order.values())


def test_acknowledgements_that_nobody_waits_for_change_nothing() -> None:
    delivered = set[int]()
    delivery = Delivery(group(ENTRIES[:1], ordered=True), publish, delivered, qos=1, window=10)
    (publication,) = parse_packets(delivery.fill(0.0))

    delivery.acknowledge(PUBACK, publication.packet_id + 1, 0, 0.0)
    delivery.acknowledge(PUBREC, publication.packet_id, 0, 0.0)
    delivery.acknowledge(PUBCOMP, publication.packet_id, 0, 0.0)

    assert not delivery.done
    assert not delivery.downgraded
    assert [seq for seq, _ in delivery.in_flight] == [0]
    delivery.acknowledge(PUBACK, publication.packet_id, 0, 0.0)
    assert delivery.done
    assert delivered == {0}
    assert (delivery.topics, delivery.largest) == ({b"events"}, len(ENTRIES[0].json))


def test_a_broker_is_silent_from_what_was_sent_or_from_the_last_acknowledgement_of_anything() -> None:
    delivery = Delivery(group(ENTRIES[:3], ordered=False), publish, set(), qos=1, window=2)
    never, acknowledged = parse_packets(delivery.fill(100.0))
    assert delivery.silent_since == 100.0

    delivery.acknowledge(PUBACK, acknowledged.packet_id, 0, 107.0)
    delivery.fill(108.0)
    delivery.acknowledge(PUBACK, acknowledged.packet_id, 0, 109.0)

    assert delivery.silent_since == 107.0
    delivery.acknowledge(PUBACK, never.packet_id, 0, 109.5)
    delivery.fill(110.0)
    assert delivery.silent_since == 109.5


def test_an_event_goes_the_later_the_higher_its_rank() -> None:
    ranks = {0: 3, 2: 1, 3: 1}
    delivery = Delivery(
        group(ENTRIES[:5], ordered=False),
        lambda entry, alone: publish(entry) if alone else ranks.get(entry.seq, publish(entry)),
        set(),
        qos=1,
        window=9,
    )
    order = dict[int, int]()
    while not delivery.done:
        sent = parse_packets(delivery.fill(0.0))
        order |= {seq: len(sent) for seq, _ in delivery.in_flight}
        for publication in sent:
            delivery.acknowledge(PUBACK, publication.packet_id, 0, 0.0)

    assert list(order.items()) == [(1, 2), (4, 2), (2, 1), (3, 1), (0, 1)]
