from typing import Any

import pytest
from pydantic import ValidationError

from sinks.webhook.settings import WebhookSettings, read_url, request_headers


def settings(**given: Any) -> WebhookSettings:
    return WebhookSettings.model_validate({"type": "webhook", "url": "https://hooks.example.com/x"} | given)


def test_a_url_is_all_that_must_be_given() -> None:
    given = settings()

    assert (given.method, given.format, given.timeout, given.connections) == ("POST", "event", 10, 4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": "https://geheim:geheim@hooks.example.com/"}, "set `username` and `password`, or `token`, instead"),
        ({"url": "ftp://hooks.example.com/geheim"}, "must look like https://host/path"),
        ({"method": "GET"}, "'POST' or 'PUT'"),
        ({"format": "xml"}, "'event', 'batch' or 'lines'"),
        ({"timeout": 0}, "greater than 0"),
        ({"connections": 0}, "greater than or equal to 1"),
        ({"token": "geheim\n"}, "token: has characters that can't stand in a header"),
        ({"headers": {"X-Key": "geheim\r\nX-Other: 1"}}, "headers: X-Key: has characters"),
        ({"headers": {"X-Key": "gehe\u00efm"}}, "headers: X-Key: has characters"),
        ({"headers": {"X Key": "geheim"}}, "headers: 'X Key' can't be set"),
        ({"headers": {"Content-Length": "1"}}, "headers: 'Content-Length' can't be set"),
        ({"token": "geheim", "username": "u", "password": "geheim"}, "set only one of"),
        ({"token": "geheim", "headers": {"authorization": "geheim"}}, "set only one of"),
        ({"username": "u"}, "set `username` and `password` together"),
        ({"password": "geheim"}, "set `username` and `password` together"),
        ({"username": "u:v", "password": "geheim"}, "can't have a colon"),
        ({"key_file": "x.key"}, "of no use without `cert_file`"),
        ({"follow_redirects": True}, "Extra inputs are not permitted"),
    ],
)
def test_what_can_not_work_is_refused_in_words_without_secrets(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        settings(**given)

    assert words in str(error.value)
    assert "geheim" not in str(error.value)


def test_secrets_do_not_show() -> None:
    given = settings(token="geheim", headers={"X-Key": "geheim"}, cert_file="c", key_password="geheim")

    assert "geheim" not in repr(given)
    assert "geheim" not in str(given.model_dump())
    assert "geheim" not in given.model_dump_json()


def test_the_headers_say_who_and_what() -> None:
    headers = request_headers(settings(headers={"X-Key": "k", "Content-Type": "application/cloudevents+json"}))

    assert headers["user-agent"].startswith("event-bridge/")
    assert headers["x-key"] == "k"
    assert headers["content-type"] == "application/cloudevents+json"
    assert "authorization" not in headers
    assert request_headers(settings(format="lines"))["content-type"] == "application/x-ndjson"


def test_credentials_become_an_authorization_header() -> None:
    # The example of RFC 7617, section 2.1: a user name and password outside of ASCII.
    assert request_headers(settings(username="test", password="123\u00a3"))["authorization"] == "Basic dGVzdDoxMjPCow=="
    assert request_headers(settings(token="abc"))["authorization"] == "Bearer abc"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://hooks.example.com/geheim", "must look like"),
        ("hooks.example.com/geheim", "must look like"),
        ("https:///geheim", "must look like"),
        ("", "must look like"),
        ("https://geheim@hooks.example.com/", "instead"),
        ("https://user:geheim@hooks.example.com/", "`username` and `password`"),
        ("https://hooks.example.com:geheim/", "not a URL"),
        ("https://hooks.example.com:99999/geheim", "not a URL"),
        ("http://[::1/geheim", "not a URL"),
        (f"https://{'a' * 64}.example.com/geheim", "not a URL"),
    ],
)
def test_what_is_no_address_of_a_receiver_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        read_url(text)

    assert "geheim" not in str(error.value)
