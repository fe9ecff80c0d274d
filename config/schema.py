"""The JSON Schema of the configuration file, for editors and for checks before a deployment.

config/bridge.schema.json is the output of `event-bridge schema`; a test compares them.
"""

from typing import Any, Final

from pydantic.json_schema import models_json_schema

from config.introspection import FILE
from config.plugins import Plugins, installed, load_plugin
from config.settings import Settings

_NOISE: Final = frozenset({"title", "ge", "gt", "le", "lt"})
"""Left out: titles that repeat the key, and bounds that have no standard keyword for the type."""


def json_schema(plugins: Plugins | None = None) -> dict[str, Any]:
    """Make the schema.

    Args:
        plugins: The types of sinks; if None, those that are installed. All of them are imported.

    Raises:
        PluginError: One of them can't be imported, or is no sink.
    """
    plugins = installed() if plugins is None else plugins
    sinks: dict[str, Any] = {kind: load_plugin(plugins, kind).Settings for kind in sorted(plugins)}
    references, schema = models_json_schema([(model, "validation") for model in (Settings, *sinks.values())])
    definitions = schema["$defs"]
    by_kind = {kind: references[model, "validation"]["$ref"] for kind, model in sinks.items()}
    for kind, reference in by_kind.items():
        _tie_to_type(definitions[reference.removeprefix("#/$defs/")], kind)
    root = definitions.pop(references[Settings, "validation"]["$ref"].removeprefix("#/$defs/"))
    _set_values(root["properties"]["sinks"], by_kind)
    definitions.pop("SinkSettings", None)
    for model_schema in (root, *definitions.values()):
        _finish(model_schema, definitions)
    root["title"] = "Configuration of event-bridge"
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:event-bridge:config"}
    return {**head, **root, "$defs": dict(sorted(definitions.items()))}


def _tie_to_type(model_schema: dict[str, Any], kind: str) -> None:
    """Make a sink's `type` required, and equal to the plug-in's name."""
    model_schema["properties"]["type"] = {"const": kind, "type": "string", "description": "The kind of sink."}
    model_schema["required"] = sorted({"type", *model_schema.get("required", [])})


def _set_values(mapping_schema: dict[str, Any], by_kind: dict[str, str]) -> None:
    values = {
        "oneOf": [{"$ref": reference} for reference in by_kind.values()],
        "discriminator": {"propertyName": "type", "mapping": by_kind},
    }
    mapping_schema["patternProperties"] = dict.fromkeys(mapping_schema["patternProperties"], values)


def _finish(model_schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Add to one model what pydantic leaves out: `<key>_file` of secrets, descriptions, that other names are not allowed."""
    properties = model_schema.get("properties", {})
    for key, raw in list(properties.items()):
        properties[key] = schema = _plain(raw)
        if "$ref" in schema and "description" not in schema:
            schema["description"] = definitions[schema["$ref"].removeprefix("#/$defs/")].get("description", "")
        if "patternProperties" in schema:
            schema["additionalProperties"] = False
        if _is_secret(schema) and key + FILE not in properties:
            _add_twin(model_schema, key)


def _plain(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_plain(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: value if name == "default" else _plain(value) for name, value in schema.items() if name not in _NOISE}


def _is_secret(schema: dict[str, Any]) -> bool:
    return any(member.get("writeOnly") for member in (schema, *schema.get("anyOf", [])))


def _add_twin(model_schema: dict[str, Any], key: str) -> None:
    """Allow `<key>_file` instead of a secret, but not both; if the secret is required, one of the two is."""
    model_schema["properties"][key + FILE] = {"type": "string", "minLength": 1, "description": f"File that holds {key}."}
    rules = model_schema.setdefault("allOf", [])
    rules.append({"not": {"required": [key, key + FILE]}})
    required = model_schema.get("required", [])
    if key in required:
        required.remove(key)
        rules.append({"anyOf": [{"required": [key]}, {"required": [key + FILE]}]})
