"""Who may import whom: the layers of the design, read off the source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("bridge", "sinks", "config")

CORE: Final[dict[str, set[str]]] = {
    # Pure: decisions, values and contracts.
    "units": set(),
    "frames": set(),
    "source": set(),
    "event": set(),
    "policy": {"event"},
    "sink": {"event", "policy", "units"},
    "tls": {"sink"},
    # The durable log. Its parts are nobody else's business.
    "journal": {"event", "sink"},
    # What runs.
    "metrics": {"event", "sink", "source", "journal"},
    "presence": {"source"},
    "stream": {"event", "policy", "presence", "source", "journal", "metrics"},
    "forwarder": {"policy", "sink", "journal", "metrics"},
    "threads": {"policy", "journal", "stream", "forwarder"},
    "supervisor": {"journal", "stream", "forwarder", "threads"},
    # Kinds of streams: they know their contract, and neither the journal nor who reads them.
    "dockercloud_url": set(),
    "dockercloud": {"dockercloud_url", "frames", "policy", "source"},
    "engine_wire": set(),
    "engine_events": {"event"},
    "engine": {"engine_events", "engine_wire", "source"},
    # Looking at it from outside.
    "health": {"event", "journal", "stream", "forwarder", "supervisor"},
    "server": {"exchange", "health", "journal", "listener", "operations_access", "operations_http"},
    "exchange": set(),
    "listener": {"exchange"},
    # Looking inside and changing things: what can be done, on the journal and by HTTP.
    "operations": {"journal", "units"},
    "operations_journal": {"event", "journal", "operations"},
    "operations_access": {"exchange"},
    "operations_http": {"exchange", "journal", "operations"},
    "operations_client": {"operations"},
    "inspect_render": set(),
    "inspect_terminal": {"inspect_render"},
    "inspect_replay": {"inspect_render", "inspect_terminal", "operations"},
    "logs": set(),
    # A Stream API server, for demos and tests.
    "world": set(),
    "simulator_settings": set(),
    "simulator_handshake": {"simulator_settings"},
    "simulator_traffic": {"frames", "simulator_settings", "world"},
    "simulator": {"event", "frames", "simulator_handshake", "simulator_settings", "simulator_traffic"},
}
"""A module of `bridge`, and which others of `bridge` it may import."""

COMPOSITION: Final = {
    *("checking", "cli", "commands", "compose", "reload"),
    *("inspect_arguments", "inspect_backlog", "inspect_journal", "inspect_letters", "inspect_place"),
}
"""Modules of `bridge` that may import everything: they put the parts together."""

OWNERS: Final[dict[str, set[str]]] = {
    "websocket": {"bridge.sources.dockercloud.source"},
    "sqlite3": {
        f"bridge.journal.{module}"
        for module in ("cursor", "damage", "file", "queues", "reader", "schema", "store", "stored", "tables")
    },
    "crc32c": {"bridge.journal.queues", "bridge.journal.tables"},
    "prometheus_client": {"bridge.metrics", "bridge.admin.server"},
    "kafka": {"sinks.kafka.preflight", "sinks.kafka.client"},
    "paho": {"sinks.mqtt.transport"},
    "urllib3": {"sinks.webhook.client"},
    "yaml": {"config.yaml_file"},
    "pydantic_settings": {"config.layers"},
    "pydantic_core": {"config.errors", "config.values"},
}
"""A library, and the only modules that may know it."""

EVERYWHERE: Final = {"msgspec", "pydantic", "structlog"}
"""Libraries that are part of the language here: JSON and values, settings, logs."""

FOR_SINKS: Final = {"bridge.event", "bridge.policy", "bridge.sink", "bridge.tls", "bridge.field_types"}
"""What a sink may know of the bridge."""

SINKS: Final = {"kafka": {"kafka"}, "mqtt": {"mqtt"}, "stdout": {"stdout"}, "webhook": {"webhook", "timed"}}
"""A sink, and how the names of its modules begin."""

WITHOUT_TESTS: Final = {
    "bridge.source": "a contract; nothing in it runs",
    "bridge.admin.exchange": "values; nothing in it decides",
    "bridge.journal.model": "values; nothing in it decides",
}
"""Modules without a test module of their own name, and why; besides every `__init__`."""


class Module(NamedTuple):
    """A module of ours."""

    name: str
    path: Path

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @property
    def part(self) -> str:
        """`stream` for `bridge.stream`, `journal` for everything in `bridge.journal`."""
        return self.name.partition(".")[2].partition(".")[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())

    def imports(self) -> set[str]:
        """The full names of all modules that it imports, also inside of functions."""
        return {found for node in ast.walk(self.tree) for found in imported(node)}


def modules() -> Iterator[Module]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield Module(".".join(part for part in parts if part != "__init__"), path)


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that a statement imports; `from bridge import frames` imports `bridge.frames`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        assert node.module
        for alias in node.names:
            inside = f"{node.module}.{alias.name}"
            yield inside if inside in OURS else node.module


OURS: Final = {module.name for module in modules()}
MODULES: Final = sorted(modules())
IN_BRIDGE: Final = [module for module in MODULES if module.package == "bridge" and module.part]
IN_SINKS: Final = [module for module in MODULES if module.package == "sinks" and module.part]


def name(module: Module) -> str:
    return module.name


def ours(module: Module) -> set[str]:
    """What it imports of ours."""
    return {found for found in module.imports() if found.split(".")[0] in PACKAGES}


def family(module: str) -> str:
    """The sink that a module of `sinks` belongs to."""
    beginning = module.partition(".")[2].partition("_")[0]
    (sink,) = [sink for sink, beginnings in SINKS.items() if beginning in beginnings]
    return sink


def test_the_walk_finds_the_modules() -> None:
    assert {"bridge.event", "bridge.journal", "bridge.journal.journal", "sinks.stdout", "config.settings"} <= OURS
    assert {found for node in ast.walk(ast.parse("from bridge import frames")) for found in imported(node)} == {"bridge.frames"}


@pytest.mark.parametrize("module", IN_BRIDGE, ids=name)
def test_a_module_of_the_bridge_imports_what_its_layer_allows(module: Module) -> None:
    if module.part in COMPOSITION:
        return
    assert module.part in CORE, "a new module: say above what it may import"
    allowed = {f"bridge.{part}" for part in CORE[module.part]}
    inside = {found for found in ours(module) if module.part == "journal" and found.startswith("bridge.journal")}

    assert ours(module) - inside <= allowed


def test_no_layer_depends_on_itself() -> None:
    left = {part: set(below) for part, below in CORE.items()}
    while left:
        free = {part for part, below in left.items() if not below}
        assert free, f"a circle among {sorted(left)}"
        left = {part: below - free for part, below in left.items() if part not in free}


@pytest.mark.parametrize("module", IN_BRIDGE, ids=name)
def test_the_bridge_never_imports_a_sink_and_only_its_composition_the_configuration(module: Module) -> None:
    forbidden = {"sinks"} if module.part in COMPOSITION else {"sinks", "config"}

    assert not {found for found in ours(module) if found.split(".")[0] in forbidden}


@pytest.mark.parametrize("module", IN_SINKS, ids=name)
def test_a_sink_knows_its_contract_and_no_other_sink(module: Module) -> None:
    own = {found for found in ours(module) if found.startswith("sinks.") and family(found) == family(module.name)}

    assert ours(module) - own <= FOR_SINKS


@pytest.mark.parametrize("module", [module for module in MODULES if module.package == "config"], ids=name)
def test_the_configuration_knows_what_sinks_have_in_common_and_no_sink(module: Module) -> None:
    own = {found for found in ours(module) if found.startswith("config.")}

    assert ours(module) - own <= {"bridge.sink", "bridge.field_types"}


@pytest.mark.parametrize("module", [module for module in MODULES if module.part != "journal"], ids=name)
def test_nobody_looks_into_the_journal(module: Module) -> None:
    assert not {found for found in ours(module) if found.startswith("bridge.journal.")}


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_library_is_known_to_its_owner_only(module: Module) -> None:
    roots = {found.split(".")[0] for found in module.imports()}
    libraries = {root for root in roots if root not in sys.stdlib_module_names or root in OWNERS} - {*PACKAGES, *EVERYWHERE}

    assert libraries <= OWNERS.keys(), "a new library: say above whose it is"
    assert {library for library in libraries if module.name not in OWNERS[library]} == set()


def test_every_owner_still_uses_its_library() -> None:
    used = {(found.split(".")[0], module.name) for module in MODULES for found in module.imports()}

    assert {(library, owner) for library, owners in OWNERS.items() for owner in owners} <= used


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_a_module_says_what_it_is(module: Module) -> None:
    assert (ast.get_docstring(module.tree) or "").strip()


@pytest.mark.parametrize("module", [module for module in MODULES if module.path.name != "__init__.py"], ids=name)
def test_a_module_has_a_test_module_of_its_name(module: Module) -> None:
    relative = module.path.relative_to(ROOT)
    expected = Path("tests") / relative.parent / f"test_{relative.name}"

    if module.name in WITHOUT_TESTS:
        assert not (ROOT / expected).exists(), f"{module.name} needs no exemption any more"
    else:
        assert (ROOT / expected).exists(), f"{expected} is missing"
