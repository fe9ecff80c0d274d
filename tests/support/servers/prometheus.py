"""Prometheus and Alertmanager, as processes."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.ports import free_port


@contextmanager
def prometheus(directory: Path, config: Mapping[str, Any]) -> Iterator[int]:
    """Run a Prometheus with this configuration, and its files in a directory; yield its port."""
    yield from _run("prometheus", directory, config, "--storage.tsdb.path")


@contextmanager
def alertmanager(directory: Path, config: Mapping[str, Any]) -> Iterator[int]:
    """Run an Alertmanager with this configuration, and its files in a directory; yield its port."""
    yield from _run("prometheus-alertmanager", directory, config, "--storage.path", "--cluster.listen-address=")


def _run(program: str, directory: Path, config: Mapping[str, Any], storage: str, *options: str) -> Iterator[int]:
    port = free_port()
    directory.mkdir(exist_ok=True)
    path = directory / f"{program}.yaml"
    path.write_text(yaml.safe_dump(config))
    places = [f"--config.file={path}", f"{storage}={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen([program, *places, *options], stdout=log, stderr=log, cwd=directory) as process,
    ):
        try:
            yield port
        finally:
            process.terminate()
            process.wait(20)
