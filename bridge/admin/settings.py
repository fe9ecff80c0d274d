"""Settings of the HTTP port, and of readiness."""

from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr

from bridge.field_types import OFF, HeaderValue, Listen, OptionalFile, Seconds, Strict

_LEAST_CHARS: Final = 16
"""Characters of a token at least: nobody guesses it in the time that is left by the pause after a wrong one."""


def _long(token: SecretStr) -> SecretStr:
    if len(token.get_secret_value()) < _LEAST_CHARS:
        raise ValueError(f"must have at least {_LEAST_CHARS} characters, like those of `openssl rand -hex 16`")
    return token


class HttpTlsSettings(Strict):
    """TLS of the HTTP port, as in the web configuration of Prometheus. Renewed files are read at the next connection."""

    cert_file: Path = Field(description="Certificate in PEM format, with those between it and its authority.")
    key_file: Path = Field(description="Its key, without a password.")
    client_ca_file: OptionalFile = Field(
        default=None, description="Certificates that sign those of clients; a client without one gets the probes only."
    )

    @property
    def files(self) -> tuple[Path, Path, Path | None]:
        """The arguments of `ServerContext`."""
        return self.cert_file, self.key_file, self.client_ca_file


class HttpSettings(Strict):
    """Metrics, health and status over HTTP; and for who may, dead letters and stored events."""

    listen: Listen = Field(default="127.0.0.1:9477", description='Address as host:port; "off" or empty: do not listen.')
    token: Annotated[HeaderValue, AfterValidator(_long)] | None = Field(
        default=None,
        description="Who sends it may look at events, replay and drop dead letters. The bridge's own user needs none.",
    )

    tls: HttpTlsSettings | None = Field(default=None, description="Serve HTTPS; plain HTTP if not set.")

    @property
    def address(self) -> tuple[str, int] | None:
        """Host (an IPv6 address without its brackets) and port; None if not to listen. Port 0 means any free one."""
        if self.listen == OFF:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class HealthSettings(Strict):
    """When `/readyz` says no."""

    stream_grace: Seconds = Field(default=60.0, ge=0, description="A stream may be disconnected for so long.")
    sink_grace: Seconds = Field(default=300.0, ge=0, description="A sink may be unavailable for so long.")
