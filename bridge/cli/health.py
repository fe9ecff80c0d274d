"""The command health: asks the bridge of the configuration whether it works, for probes of containers and supervisors."""

import sys
from pathlib import Path

from bridge.admin.client import probe
from bridge.admin.server import url_of
from bridge.admin.settings import HttpSettings
from bridge.cli.run import OptionError
from config.load import load_section


def health(config: Path | None, *, ready: bool) -> int:
    """Ask for `/healthz`, or `/readyz`; print the answer and return 0 for yes and 1 for no.

    Raises:
        ConfigError: The section `http` can't be used.
        OptionError: There is no address to ask.
    """
    http = load_section("http", HttpSettings, config)
    if http.address is None or not http.address[1]:
        raise OptionError(f"health: http.listen is {http.listen}; a probe needs an address with a port")
    url = url_of(*http.address, "https" if http.tls else "http") + ("/readyz" if ready else "/healthz")
    good, text = probe(url)
    print(text, file=sys.stdout if good else sys.stderr)
    return 0 if good else 1
