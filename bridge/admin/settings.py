"""Settings of the HTTP port, and of readiness."""

from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr

from bridge.field_types import OFF, HeaderValue, Listen, Seconds, Strict

_LEAST_CHARS: Final = 16
"""Characters of a token at least: nobody guesses it in the time that is left by the pause after a wrong one."""


def _long(token: SecretStr) -> SecretStr:
    if len(token.get_secret_value()) < _LEAST_CHARS:
        raise ValueError(f"must have at least {_LEAST_CHARS} characters, like those of `openssl rand -hex 16`")
    return token


class HttpSettings(Strict):
    """Metrics, health and status over HTTP; and for who may, dead letters and stored events."""

    listen: Listen = Field(default="127.0.0.1:9477", description='Address as host:port; "off" or empty: do not listen.')
    token: Annotated[HeaderValue, AfterValidator(_long)] | None = Field(
        default=None,
        description="Who sends it may look at events, replay and drop dead letters. The bridge's own user needs none.",
    )

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
