"""What a running bridge with a stream and a sink shows to Prometheus."""

from collections.abc import Iterator

import pytest

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import Bridge


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """Yield the names of all samples of `/metrics`, each with the names of its labels."""
    with (
        Simulator(SimulatorSettings(port=0, rate=0)) as simulator,
        Bridge(tmp_path_factory.mktemp("scraped"), {"streams": {"acme": {"url": simulator.url}}}) as bridge,
    ):
        yield {name: {label for label, _ in labels} for (name, labels), _ in bridge.metrics().items()}
