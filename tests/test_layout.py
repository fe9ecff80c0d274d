"""Every module has a docstring and a test module, and every library an owner. Import rules are contracts in pyproject.toml."""

import ast
import sys
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("bridge", "sinks", "config")
MODULES: Final = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

EVERYWHERE: Final = {"msgspec", "pydantic", "structlog"}
"""Libraries that any module may use: JSON and values, settings, logs."""

WITHOUT_TESTS: Final = {
    "bridge/cli/argument_types.py": "a part of arguments; the tests of that test it",
    "bridge/admin/route.py": "values; nothing in it decides",
    "bridge/cli/dead_letter_table.py": "a part of dead_letters; the tests of that test it",
    "bridge/sink_settings.py": "a part of bridge.sink; the tests of that test it",
    "bridge/source.py": "a contract; nothing in it runs",
    "bridge/units.py": "an old name",
    "bridge/journal/model.py": "values; nothing in it decides",
    "bridge/journal/settings.py": "values; nothing in it decides",
    "bridge/sources/dockercloud/errors.py": "the tests of the source bring the failures about",
    "bridge/journal/schema.py": "statements; the tests of the file run them",
}
"""Modules without a test module of their own name, and why; besides every `__init__`."""


def tree(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text())


def test_modules_are_found() -> None:
    assert {Path("bridge/event.py"), Path("bridge/journal/journal.py"), Path("config/load.py")} <= set(MODULES)


def test_every_module_has_a_docstring() -> None:
    assert [module for module in MODULES if not ast.get_docstring(tree(module))] == []


def test_every_module_has_a_test_module_of_its_name() -> None:
    tested = {module for module in MODULES if (ROOT / "tests" / module.parent / f"test_{module.name}").exists()}
    others = {str(module) for module in MODULES if module not in tested and module.name != "__init__.py"}

    assert others == WITHOUT_TESTS.keys(), "a test module is missing, or an exemption is not needed any more"


def test_every_library_has_an_owner() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (owned,) = [contract["forbidden_modules"] for contract in contracts if contract["name"] == "A library has one owner"]
    nodes = [node for module in MODULES for node in ast.walk(tree(module))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    libraries = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {*PACKAGES, *EVERYWHERE}

    assert libraries == {*owned} - sys.stdlib_module_names
