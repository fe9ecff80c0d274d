"""Settings of a Docker Engine's stream."""

from typing import Literal, Self

from pydantic import Field, model_validator

from bridge.field_types import EngineUrl, OptionalFile
from bridge.source import SourceSettings


class EngineSettings(SourceSettings):
    """The events of one Docker Engine, or of a swarm if it is a manager."""

    type: Literal["engine"] = Field(description="The kind of stream.")
    url: EngineUrl = Field(
        default="unix:///var/run/docker.sock", description="The Engine's socket: unix:///path or tcp://host[:port]."
    )
    cert_file: OptionalFile = Field(default=None, description="Our certificate (PEM), maybe with its key; only with tcp.")
    key_file: OptionalFile = Field(default=None, description="Its key (PEM), if that is in another file.")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if self.key_file and not self.cert_file:
            raise ValueError("key_file needs cert_file beside it")
        if self.url.startswith("unix:") and (self.ca_file or self.cert_file):
            raise ValueError("TLS files need a url that begins with tcp://")
        return self
