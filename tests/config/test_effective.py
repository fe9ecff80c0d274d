"""The effective configuration: it loads again, tells where each value is from, and shows no secret."""

from pathlib import Path

import yaml

from config.effective import effective
from config.load import load

TEXT = """\
streams:
  acme: {url: wss://ws.example.com, username: bob, api_key: s3cret-1, types: [node, service]}
sinks:
  hook:
    type: webhook
    url: https://hooks.example.com/T0000/very-secret-part-of-it?key=s3cret-2&plain
    token_file: TOKEN
    headers: {X-Key: s3cret-3}
    match: [{state: "*failed*"}]
"""


def test_every_value_has_its_place_and_secrets_are_masked(tmp_path: Path) -> None:
    token, file = tmp_path / "token", tmp_path / "bridge.yaml"
    token.write_text("s3cret-4\n")
    (tmp_path / "bridge_http__token").write_text("s3cret-5-long-enough")
    file.write_text(TEXT.replace("TOKEN", str(token)))
    env = {"BRIDGE_SINKS__HOOK__TIMEOUT": "7s", "BRIDGE_SECRETS_DIR": str(tmp_path), "DOCKERCLOUD_STREAM_HOST": "wss://unused"}

    text = effective(file, env)

    lines = [line.strip() for line in text.splitlines()]
    for line in (
        f'url: "wss://ws.example.com"  # {file}: streams.acme.url',
        f'types: ["node", "service"]  # {file}: streams.acme.types',
        f'api_key: "**********"  # {file}: streams.acme.api_key',
        f'token: "**********"  # {token}, named by {file}: sinks.hook.token_file',
        f'token: "**********"  # {tmp_path}/bridge_http__token',
        f'X-Key: "**********"  # {file}: sinks.hook.headers.X-Key',
        "timeout: 7.0  # BRIDGE_SINKS__HOOK__TIMEOUT",
        "max_events: 1000  # default",
        f'url: "https://hooks.example.com/T0000/***?key=***&plain"  # {file}: sinks.hook.url',
    ):
        assert line in lines
    assert "s3cret" not in text
    assert "very-secret" not in text


def test_what_is_printed_can_be_loaded_and_means_the_same(tmp_path: Path) -> None:
    file, printed = tmp_path / "bridge.yaml", tmp_path / "printed.yaml"
    file.write_text(
        "streams: {acme: {types: [node]}}\nsinks: {log: {type: stdout, drop: {action: [start, 'a: b', '$${HOME}']}}}\n"
    )
    env = {"BRIDGE_SECRETS_DIR": "", "BRIDGE_JOURNAL__MAX_BYTES": "2GiB"}

    printed.write_text(effective(file, env))

    assert yaml.safe_load(printed.read_text())["journal"]["max_bytes"] == 2 << 30
    assert load(printed, {"BRIDGE_SECRETS_DIR": ""}) == load(file, env)


def test_without_a_file_variables_and_defaults_are_named() -> None:
    text = effective(None, {"BRIDGE_SECRETS_DIR": "", "DOCKERCLOUD_USER": "bob", "DOCKERCLOUD_APIKEY": "s3cret"})

    assert "    username: bob  # DOCKERCLOUD_USER" in text.splitlines()
    assert "    type: stdout  # default" in text.splitlines()
    assert "s3cret" not in text
