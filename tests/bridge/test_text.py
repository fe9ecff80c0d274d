"""What peers send is shown, and does nothing else."""

import pytest

from bridge.sink import Entry, Failure, Unavailable
from bridge.source import Ended
from bridge.text import MAX_CHARS, plain, without

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
