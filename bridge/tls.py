"""TLS contexts, made of the PEM files that settings name, and what goes without TLS."""

import ssl
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Final, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

from bridge.field_types import is_loopback
from bridge.sink import Unavailable

_PLAIN: Final = frozenset({"http", "ws", "mqtt", "tcp"})

_shared_lock: Final = Lock()


class CertificateError(ValueError):
    """Our certificate can't be read, or does not fit its key."""


def client_context(
    ca_file: str | Path | None,
    cert_file: str | Path | None = None,
    key_file: str | Path | None = None,
    key_password: SecretStr | None = None,
) -> ssl.SSLContext:
    """Read the files, which may have been renewed since the last call.

    Args:
        ca_file: Certificates to trust instead of the system's.
        cert_file: Our certificate.
        key_file: Its key, if that is in another file.
        key_password: The key's password.

    Raises:
        OSError: `ca_file` can't be read or holds no certificate.
        CertificateError: `cert_file` can't be used with its key.
    """
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file is not None:
        password = key_password.get_secret_value() if key_password else ""
        try:
            # Without a password of ours OpenSSL would ask for one on the terminal.
            context.load_cert_chain(cert_file, key_file, lambda: password)
        except (OSError, ValueError) as error:
            raise CertificateError(str(error)) from error
    return context


def shared_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return the process's one context for a file of trusted certificates, or for the system's.

    Sharing saves about 18 KiB per connection (docs/benchmarks.md). A file that has changed gives a new one.

    Raises:
        OSError: The file can't be read or holds no certificate.
    """
    with _shared_lock:
        return _shared_context(ca_file, ca_file.stat().st_mtime_ns if ca_file else 0)


@lru_cache(maxsize=16)
def _shared_context(ca_file: Path | None, changed: int) -> ssl.SSLContext:  # noqa: ARG001 - part of the cache's key
    return client_context(ca_file)


class ServerContext:
    """The TLS context of a server, read again when its files have changed; the last one is kept while they can't be used.

    Args:
        cert_file: The certificate.
        key_file: Its key.
        client_ca_file: What signs certificates of clients; None asks for none. One that is not signed by it ends the handshake.

    Raises:
        OSError: A file can't be read, or makes no sense.
    """

    def __init__(self, cert_file: Path, key_file: Path, client_ca_file: Path | None) -> None:
        self.asks = client_ca_file is not None
        self._files = (cert_file, key_file, client_ca_file)
        self._changed = self._times()
        self._context = self._read()

    def current(self) -> ssl.SSLContext:
        """Return the context for a new connection."""
        with suppress(OSError):
            changed = self._times()
            if changed != self._changed:
                self._changed = changed
                self._context = self._read()
        return self._context

    def _times(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in self._files if path]

    def _read(self) -> ssl.SSLContext:
        cert_file, key_file, client_ca_file = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca_file)
        context.verify_mode = ssl.CERT_OPTIONAL if client_ca_file else ssl.CERT_NONE
        try:
            context.load_cert_chain(cert_file, key_file, lambda: "")
        except ssl.SSLError as error:
            # OpenSSL's words for a key with a password are those for a broken file.
            words = "the key must be that of the certificate, both in PEM format, the key without a password"
            raise OSError(f"{cert_file} with {key_file}: {words}") from error
        return context


class TlsFiles(Protocol):
    """Settings of a sink that name PEM files."""

    @property
    def ca_file(self) -> str | Path | None:
        """Certificates to trust instead of the system's."""

    @property
    def cert_file(self) -> str | Path | None:
        """Our certificate."""

    @property
    def key_file(self) -> str | Path | None:
        """Its key, if that is in another file."""

    @property
    def key_password(self) -> SecretStr | None:
        """The key's password."""


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Read a sink's certificates; to be called whenever the sink is opened, since they get renewed.

    Raises:
        Unavailable: They can't be read, or do not fit together.
    """
    try:
        return client_context(files.ca_file, files.cert_file, files.key_file, files.key_password)
    except OSError as error:
        raise Unavailable(f"ca_file {files.ca_file}: {error.strerror or error}", "tls") from error
    except CertificateError as error:
        raise Unavailable(f"cert_file {files.cert_file}: not usable with its key: {error}", "tls") from error


def hosts_in_clear_text(settings: BaseModel) -> list[str]:
    """Return the hosts beyond this machine to which settings with a secret in them connect without TLS.

    A part has a `url`, or `bootstrap_servers` and `uses_tls`; so may a plug-in.
    """
    if not any(isinstance(value, SecretStr) or (isinstance(value, dict) and value) for value in _values(settings)):
        return []
    proxy = getattr(settings, "proxy", None)
    urls = [getattr(settings, "url", None) or ""]
    if proxy and "@" in proxy.get_secret_value():
        urls.append(proxy.get_secret_value())
    if not (getattr(settings, "uses_tls", True) or str(getattr(settings, "sasl", "")).startswith("SCRAM")):
        urls += [f"tcp://{server}" for server in getattr(settings, "bootstrap_servers", [])]
    parts = [urlsplit(url) for url in urls]
    return [part.hostname for part in parts if part.scheme in _PLAIN and part.hostname and not is_loopback(part.hostname)]


def _values(settings: BaseModel) -> Iterator[object]:
    """Yield the values that may be secret: fields, and mappings of secrets such as headers."""
    for value in dict(settings).values():
        yield {key: inner for key, inner in value.items() if isinstance(inner, SecretStr)} if isinstance(value, dict) else value
