"""TLS for sinks: the files that their settings name, as a context."""

import ssl
from typing import Protocol

from pydantic import SecretStr

from bridge.sink import Unavailable


class TlsFiles(Protocol):
    """Settings that name certificates, as paths of PEM files."""

    @property
    def ca_file(self) -> str | None:
        """What to trust instead of the system's certificates."""

    @property
    def cert_file(self) -> str | None:
        """Our certificate."""

    @property
    def key_file(self) -> str | None:
        """Its key, if that is in another file."""

    @property
    def key_password(self) -> SecretStr | None:
        """The key's password."""


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Read the certificates; to be called whenever a sink is opened, since they get renewed.

    Raises:
        Unavailable: They can't be read, or do not fit together.
    """
    try:
        context = ssl.create_default_context(cafile=files.ca_file)
    except OSError as error:
        raise Unavailable(f"ca_file {files.ca_file}: {error.strerror or error}", "tls") from error
    if files.cert_file is not None:
        password = files.key_password.get_secret_value() if files.key_password else ""
        try:
            # Without a password of ours OpenSSL would ask for one on the terminal.
            context.load_cert_chain(files.cert_file, files.key_file, lambda: password)
        except (OSError, ValueError) as error:
            raise Unavailable(f"cert_file {files.cert_file}: not usable with its key: {error}", "tls") from error
    return context
