from pathlib import Path

import pytest

from config import layers
from config.layers import Layer, dotted, find, from_environment, from_file, from_secrets, read_secret
from config.yaml_file import ReadError


def environment(**env: str) -> tuple[Layer, list[str]]:
    problems: list[str] = []
    return from_environment(env, problems), problems


def secrets(**env: str) -> tuple[Layer, bool, list[str]]:
    problems: list[str] = []
    layer, sound = from_secrets(env, problems)
    return layer, sound, problems


def test_two_underscores_separate_the_levels_of_a_variable() -> None:
    layer, problems = environment(BRIDGE_STREAMS__ACME_1__API_KEY="k", BRIDGE_JOURNAL__DEDUP__WINDOW="1h", HOME="/")

    assert layer.data == {"streams": {"acme_1": {"api_key": "k"}}, "journal": {"dedup": {"window": "1h"}}}
    assert not problems


def test_values_stay_text_because_only_the_type_of_a_key_tells_what_they_mean() -> None:
    layer, _ = environment(BRIDGE_SINKS__A__PASSWORD="12345", BRIDGE_SINKS__A__TOPIC='{"a": 1}', BRIDGE_STREAMS="{}")

    assert layer.data == {"sinks": {"a": {"password": "12345", "topic": '{"a": 1}'}}, "streams": "{}"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("BRIDGE_LOG_LEVLE", "did you mean BRIDGE_LOG__LEVEL?"),
        ("BRIDGE_JOURNAL_PATH", "did you mean BRIDGE_JOURNAL__PATH?"),
        ("BRIDGE_JURNAL__DEDUP__WINDOW", "did you mean BRIDGE_JOURNAL__DEDUP__WINDOW?"),
        ("BRIDGE_STEAMS__ACME__URL", "did you mean BRIDGE_STREAMS__ACME__URL?"),
        ("BRIDGE_CONFG", "did you mean BRIDGE_CONFIG?"),
        ("BRIDGE_SECRET_DIR", "did you mean BRIDGE_SECRETS_DIR?"),
        ("BRIDGE_STREAMS_ACME_URL", "two underscores"),
        ("BRIDGE_WHATEVER", "two underscores"),
        ("BRIDGE_", "two underscores"),
        ("BRIDGE_STREAMS____URL", "two underscores"),
        ("BRIDGE_STREAMS__ACME__", "two underscores"),
        ("BRIDGE_SERVICE", "two underscores"),
        ("BRIDGE_HTTP_PORT", "BRIDGE_"),
    ],
)
def test_a_variable_that_nothing_is_called_by_is_a_problem(name: str, says: str) -> None:
    layer, [problem] = environment(**{name: "hunter2"})

    assert layer.data == {}
    assert problem.startswith(f"{name}: no such setting; ")
    assert says in problem
    assert "hunter2" not in problem


def test_what_kubernetes_sets_beside_a_service_called_bridge_is_not_meant_for_us() -> None:
    layer, problems = environment(
        BRIDGE_SERVICE_HOST="10.0.0.1",
        BRIDGE_SERVICE_PORT="9477",
        BRIDGE_SERVICE_PORT_METRICS="9477",
        BRIDGE_PORT="tcp://10.0.0.1:9477",
        BRIDGE_PORT_9477_TCP="tcp://10.0.0.1:9477",
        BRIDGE_PORT_9477_TCP_PROTO="tcp",
        BRIDGE_PORT_9477_TCP_PORT="9477",
        BRIDGE_PORT_9477_TCP_ADDR="10.0.0.1",
        BRIDGE_PROD_SERVICE_HOST="10.0.0.1",
    )

    assert (layer.data, problems) == ({}, [])


def test_the_simulators_variable_does_not_disturb_the_bridge() -> None:
    assert environment(BRIDGE_SIMULATOR_API_KEY="k", BRIDGE_CONFIG="c", BRIDGE_SECRETS_DIR="s")[1] == []


def test_a_key_that_looks_like_one_of_kubernetes_is_still_ours() -> None:
    layer, problems = environment(BRIDGE_SINKS__A__SERVICE_HOST="x")

    assert (layer.data, problems) == ({"sinks": {"a": {"service_host": "x"}}}, [])


def test_a_whole_and_a_part_of_it_can_not_both_be_set() -> None:
    _, problems = environment(BRIDGE_SINKS='{"a": {}}', BRIDGE_SINKS__A__TYPE="x")

    assert problems == ["BRIDGE_SINKS: is set together with BRIDGE_SINKS__A__TYPE; set either the whole or its parts"]


def test_files_named_like_variables_are_secrets(tmp_path: Path) -> None:
    (tmp_path / "bridge_streams__acme__api_key").write_text("k\n")
    (tmp_path / "BRIDGE_STREAMS__ACME__USERNAME").write_text("bob")
    (tmp_path / "bridge_api_key").write_text("not ours: it has no __")
    (tmp_path / "keystore").write_bytes(b"\xff\xfe")
    (tmp_path / "bridge_sinks__a__directory").mkdir()

    layer, sound, problems = secrets(BRIDGE_SECRETS_DIR=str(tmp_path))

    assert layer.data == {"streams": {"acme": {"api_key": "k", "username": "bob"}}}
    assert layer.place(("streams", "acme", "api_key")) == str(tmp_path / "bridge_streams__acme__api_key")
    assert (sound, problems) == (True, [])


def test_a_mounted_kubernetes_secret_is_read_through_its_links(tmp_path: Path) -> None:
    (tmp_path / "..2026_11_23").mkdir()
    (tmp_path / "..2026_11_23" / "bridge_streams__acme__api_key").write_text("k")
    (tmp_path / "..data").symlink_to("..2026_11_23")
    (tmp_path / "bridge_streams__acme__api_key").symlink_to("..data/bridge_streams__acme__api_key")

    layer, _, _ = secrets(BRIDGE_SECRETS_DIR=str(tmp_path))

    assert layer.data == {"streams": {"acme": {"api_key": "k"}}}


def test_credentials_of_systemd_go_before_other_secrets(tmp_path: Path) -> None:
    for directory, value in (("secrets", "one"), ("credentials", "two")):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "bridge_streams__acme__api_key").write_text(value)

    layer, _, _ = secrets(BRIDGE_SECRETS_DIR=str(tmp_path / "secrets"), CREDENTIALS_DIRECTORY=str(tmp_path / "credentials"))

    assert layer.data == {"streams": {"acme": {"api_key": "two"}}}
    assert layer.place(("streams", "acme", "api_key")).startswith(str(tmp_path / "credentials"))


def test_the_default_directory_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "DEFAULT_SECRETS_DIR", tmp_path / "secrets")
    assert secrets()[0].data == {}

    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "bridge_log__level").write_text("debug")

    assert secrets()[0].data == {"log": {"level": "debug"}}
    assert secrets(BRIDGE_SECRETS_DIR="")[0].data == {}


def test_a_directory_that_was_named_must_be_there(tmp_path: Path) -> None:
    _, sound, [problem] = secrets(BRIDGE_SECRETS_DIR=str(tmp_path / "missing"))

    assert not sound
    assert problem == f"{tmp_path}/missing: can't be read as a directory of secrets: No such file or directory"


def test_a_secret_that_is_empty_or_has_a_wrong_name_is_a_problem_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "bridge_streams__acme__api_key").write_text("\n")
    (tmp_path / "bridge_steams__acme__api_key").write_text("hunter2")

    _, sound, problems = secrets(BRIDGE_SECRETS_DIR=str(tmp_path))

    assert not sound
    assert problems[0] == f"{tmp_path}/bridge_streams__acme__api_key: is empty"
    assert problems[1].startswith(f"{tmp_path}/bridge_steams__acme__api_key: no such setting")


@pytest.mark.parametrize(
    ("content", "secret"), [(b"k", "k"), (b"k\n", "k"), (b"k\r\n", "k"), (b" k \n", " k "), (b"a\nb\n", "a\nb")]
)
def test_only_the_line_end_behind_a_secret_is_left_out(tmp_path: Path, content: bytes, secret: str) -> None:
    (tmp_path / "file").write_bytes(content)

    assert read_secret(tmp_path / "file") == secret


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "is empty"), (b"\r\n", "is empty"), (b"\xff", "UTF-8"), (b"x" * 1024 * 1025, "too large")]
)
def test_what_is_no_secret(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(ReadError, match=says) as caught:
        read_secret(tmp_path / "file")

    assert str(caught.value).startswith(f"{tmp_path}/file: ")


def test_the_file_is_the_one_that_was_named_or_the_first_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    system = tmp_path / "etc" / "bridge.yaml"
    monkeypatch.setattr(layers, "SEARCHED", (Path("bridge.yaml"), system))

    assert find(None, {}) is None
    system.parent.mkdir()
    system.touch()
    assert find(None, {}) == system
    Path("bridge.yaml").touch()
    assert find(None, {}) == Path("bridge.yaml")
    assert find(None, {"BRIDGE_CONFIG": ""}) == Path("bridge.yaml")
    assert find(None, {"BRIDGE_CONFIG": "other.yaml"}) == Path("other.yaml")
    assert find(Path("given.yaml"), {"BRIDGE_CONFIG": "other.yaml"}) == Path("given.yaml")


def test_a_dangling_link_is_a_file_that_can_not_be_read_not_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bridge.yaml").symlink_to("nowhere")

    with pytest.raises(ReadError, match=r"^bridge\.yaml: can't be read: No such file"):
        from_file(None, {})


def test_a_file_that_can_not_even_be_looked_for_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SEARCHED", (tmp_path / ("x" * 300),))

    with pytest.raises(ReadError, match="File name too long"):
        from_file(None, {})


def test_who_named_a_missing_file_is_told() -> None:
    with pytest.raises(ReadError, match=r"^missing\.yaml \(named by BRIDGE_CONFIG\): can't be read: No such file"):
        from_file(None, {"BRIDGE_CONFIG": "missing.yaml"})
    with pytest.raises(ReadError, match=r"^missing\.yaml: can't be read: No such file"):
        from_file(Path("missing.yaml"), {})


def test_a_place_is_named_as_the_user_knows_it() -> None:
    layer, _ = environment(BRIDGE_SINKS='{"a": {}}', BRIDGE_STREAMS__ACME__URL="x")
    file = Layer({}, {(): "bridge.yaml"}, text=False)

    assert layer.place(("streams", "acme", "url")) == "BRIDGE_STREAMS__ACME__URL"
    assert layer.place(("streams", "acme", "api_key")) == "BRIDGE_STREAMS__ACME__API_KEY"
    assert layer.place(("sinks", "a", "type")) == "BRIDGE_SINKS: a.type"
    assert file.place(("sinks", "a", "match", 0, "state")) == "bridge.yaml: sinks.a.match[0].state"
    assert file.place(()) == "bridge.yaml"


def test_a_key_that_is_no_name_is_not_shown() -> None:
    assert dotted(("streams", "api_key:hunter2", "url")) == "streams.….url"
