"""Certificates that settings name."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from bridge.sink import SinkSettings, Unavailable
from bridge.tls import shared_context, tls_context
from tests.support.servers.receiver import make_certificate


class Files(SinkSettings):
    type: str = "test"
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    key_password: SecretStr | None = None


def test_missing_or_unusable_certificates_make_the_sink_unavailable(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    _, other_key = make_certificate(tmp_path, "other")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("rubbish")

    for given, words in (
        ({"ca_file": tmp_path / "none"}, "none: No such file or directory"),
        ({"ca_file": rubbish}, "ca_file"),
        ({"cert_file": tmp_path / "none"}, "No such file or directory"),
        ({"cert_file": certificate, "key_file": other_key}, "mismatch"),
        ({"cert_file": certificate}, "cert_file"),
    ):
        texts = {name: str(path) for name, path in given.items()}
        with pytest.raises(Unavailable, match=words) as unavailable:
            tls_context(Files.model_validate(texts))
        assert unavailable.value.reason == "tls"

    assert tls_context(Files(cert_file=str(certificate), key_file=str(key))).check_hostname


def test_an_encrypted_key_needs_its_password_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, password="geheim")
    files = {"cert_file": str(certificate), "key_file": str(key)}

    for given in ({}, {"key_password": "wrong"}, {"key_password": "x" * 2000}):
        with pytest.raises(Unavailable, match="not usable with its key") as unavailable:
            tls_context(Files.model_validate(files | given))
        assert "wrong" not in str(unavailable.value)

    assert tls_context(Files.model_validate(files | {"key_password": "geheim"})).check_hostname


def test_a_context_is_shared_until_its_file_changes(tmp_path: Path) -> None:
    ca_file, _ = make_certificate(tmp_path)
    before = shared_context(ca_file)

    assert shared_context(ca_file) is before
    ca_file.touch()
    assert shared_context(ca_file) is not before
