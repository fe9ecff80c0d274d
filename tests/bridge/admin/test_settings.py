"""Settings of the HTTP port."""

from typing import Any

import pytest
from pydantic import ValidationError

from bridge.admin.settings import HttpSettings


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("0.0.0.0:9477", ("0.0.0.0", 9477)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9477", ("::1", 9477)),
        ("off", None),
        ("", None),
        (False, None),
    ],
)
def test_an_address_to_listen_on_is_host_and_port_or_off(listen: Any, address: tuple[str, int] | None) -> None:
    assert HttpSettings(listen=listen).address == address


@pytest.mark.parametrize("listen", ["9477", ":", "host", "::1:9477", "host:99999", "host:x", "a b:1", "host:1\n", True, 5])
def test_anything_else_is_no_address(listen: Any) -> None:
    with pytest.raises(ValidationError):
        HttpSettings(listen=listen)
