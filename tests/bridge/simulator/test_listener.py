import json
from urllib.parse import quote, urlencode

import pytest

from tests.support.simulation import BASIC, PATH, client, everything, simulator, status_of


@pytest.mark.parametrize("path", [PATH, PATH + "/", "/api/audit/v1/acme/events", "/api/audit/v1/acme/events/"])
def test_the_path_is_served_with_and_without_namespace_and_slash(path: str) -> None:
    with simulator() as running, client(running, path) as connection:
        namespace = "acme/" if "acme" in path else ""

        assert json.loads(connection.recv())["resource_uri"].split("/nodecluster/")[0] == f"/api/infra/v1/{namespace}"[:-1]


def test_the_sticky_cookie_is_set_unless_the_client_has_one() -> None:
    with simulator() as running:
        with client(running) as first:
            cookie = (first.getheaders() or {})["set-cookie"]
        with client(running, cookie=cookie.split(";")[0]) as second:
            assert "set-cookie" not in (second.getheaders() or {})

    assert cookie.startswith("liveid=")


@pytest.mark.parametrize(
    ("header", "query"),
    [
        (BASIC, {}),
        (BASIC.replace("Basic", "basic"), {}),
        ("ApiKey bob:secret", {}),
        ("TutumAccessKey secret", {}),
        (None, {"auth": BASIC}),
        (None, {"auth": "ApiKey bob:secret"}),
        (None, {"auth": "TutumAccessKey secret"}),
        (None, {"user": "bob", "token": "secret"}),
    ],
)
def test_every_form_of_credentials_is_accepted(header: str | None, query: dict[str, str]) -> None:
    options = {"header": [f"Authorization: {header}"]} if header else {}
    with (
        simulator(username="bob", api_key="secret") as running,
        client(running, f"{PATH}?{urlencode(query, quote_via=quote)}", **options) as connection,
    ):
        assert json.loads(connection.recv())["uuid"]


def test_a_namespace_that_is_not_served_is_not_found() -> None:
    with simulator(namespaces=["acme"]) as running:
        assert status_of(running, "/api/audit/v1/acme/events")[0] == 101
        assert status_of(running, "/api/audit/v1/other/events")[0] == 404
        assert status_of(running, PATH)[0] == 404


def test_the_accounts_own_namespace_has_two_paths_and_one_story() -> None:
    with (
        simulator(username="bob", namespaces=["", "acme"], count=400, wait_for_clients=2) as running,
        client(running) as own,
        client(running, "/api/audit/v1/bob/events") as named,
    ):
        first, second = everything(running, own, named)

    assert first == second
    assert len(first) == 200, "the other half was acme's, to whom nobody listened"


def test_each_namespace_has_its_own_story() -> None:
    with (
        simulator(count=2000, wait_for_clients=2) as running,
        client(running, "/api/audit/v1/acme/events") as acme,
        client(running, "/api/audit/v1/other/events") as other,
    ):
        first, second = everything(running, acme, other)

    assert len(first) == len(second) == 1000
    assert all("/acme/" in event["resource_uri"] for event in first)
    assert all("/other/" in event["resource_uri"] for event in second)
    assert {event["uuid"] for event in first}.isdisjoint(event["uuid"] for event in second)
