"""What peers send is shown, and does nothing else."""

from base64 import b64encode
from urllib.parse import quote

import pytest

from bridge.sink import Entry, Failure, Unavailable
from bridge.source import Ended
from bridge.text import MAX_CHARS, hide, lines_of, plain, without

HOSTILE = "\x1b]0;owned\x07\r\n\u202e\x00" + "x" * 1_000_000


@pytest.mark.parametrize("text", ["", "plain", "ünïcode 漢字 🙂", "x" * MAX_CHARS])
def test_an_ordinary_text_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_control_characters_and_what_is_too_long_are_replaced() -> None:
    assert plain("a\x1b[2J\nb\u202e") == "a·[2J·b·"
    assert plain("abcdef", 4) == "abc…"
    assert len(plain(HOSTILE)) == MAX_CHARS
    assert plain(HOSTILE).isprintable()


def test_every_error_of_a_peer_is_made_fit_where_it_enters() -> None:
    entry = Entry(1, 0.0, b"{}")
    texts = [
        str(Unavailable(HOSTILE)),
        str(Ended(HOSTILE, "network")),
        Failure.retry(entry, "server_error", HOSTILE).error,
        Failure.rejected(entry, "rejected", HOSTILE).error,
    ]

    assert {(len(text), text.isprintable()) for text in texts} == {(MAX_CHARS, True)}


@pytest.mark.parametrize(
    "text",
    [
        "geheim-1.",
        "geheim%2d1.",
        "ge<b>heim</b>-1.",
        "g%65<i>heim\ufe0f-1.",
        "ge<!--<>-->heim-1.",
        "geheim\u200b-\u00ad1.",
        "gehei",
    ],
)
def test_a_secret_is_masked_in_every_promised_form(text: str) -> None:
    assert without(["x-geheim-1", "geheim-1", "*"], f"it is {text}").rstrip(".") == "it is ***"


@pytest.mark.parametrize("text", ["", "a<b>c</b> 100%25 ä\u200b geh", "the key is not valid"])
def test_a_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert without(["geheim-1"], text) == text


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.text._hidden", [])
    hide(["s3cret/val+ue", "short", "another-secret"], ["bob"])


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize(
    "form",
    [
        "s3cret/val+ue",
        quote("s3cret/val+ue"),
        quote("s3cret/val+ue", ""),
        quote("s3cret/val+ue", "").lower(),
        b64encode(b"s3cret/val+ue").decode(),
        b64encode(b"bob:s3cret/val+ue").decode(),
        b64encode(b"bob:s3cret/val+ue").decode().rstrip("="),
    ],
)
def test_a_secret_is_not_shown_in_any_of_its_encodings(form: str) -> None:
    assert "***" in plain(f"bad key {form} is bad")
    assert form.rstrip("=") not in plain(f"bad key {form} is bad")
    assert form not in str(Ended(f"closed by the server: {form}", "network"))


@pytest.mark.usefixtures("secrets")
def test_no_part_of_a_secret_is_left_where_a_text_is_cut() -> None:
    assert "another" not in plain("x" * (MAX_CHARS - 9) + "another-secret")


@pytest.mark.usefixtures("secrets")
def test_a_short_secret_is_not_looked_for_since_it_stands_in_any_text() -> None:
    assert plain("a short text") == "a short text"


@pytest.mark.usefixtures("secrets")
def test_a_traceback_keeps_its_lines_and_loses_secrets_and_control_characters() -> None:
    text = lines_of("Traceback\n  File x\nRuntimeError: \x1b[2J another-secret " + "w" * 100_000)

    assert text.startswith("Traceback\n  File x\nRuntimeError: ·[2J *** www")
    assert len(text) < 2 * MAX_CHARS
