"""The manifests of `deploy/kubernetes`: Kubernetes knows every field, the parts fit together, and the bridge can use them."""

import os
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from bridge.journal.writer import RESERVE
from config.load import load
from tests.e2e.harness import command

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "deploy" / "kubernetes"
VERSIONS: Final = ("1.29", "1.33", "1.37")
"""Versions of Kubernetes whose schemas the manifests follow."""


def renderer() -> list[str] | None:
    """Return the command that renders a folder; None if there is none."""
    found = {"kustomize": ["kustomize", "build"], "kubectl": ["kubectl", "kustomize"]}
    return next((words for program, words in found.items() if shutil.which(program)), None)


@cache
def rendered(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return what of a folder is sent to the cluster."""
    done = subprocess.run([*(renderer() or ()), str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def the(kind: str) -> dict[str, Any]:
    """Return the only object of a kind."""
    (found,) = [one for one in rendered() if one["kind"] == kind]
    return found


pytestmark = pytest.mark.skipif(renderer() is None, reason="not installed: kubectl or kustomize")


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(version: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="not installed: kubernetes-validate")
    for manifest in rendered():
        schemas.validate(manifest, version, strict=True)


def test_a_field_that_is_not_known_would_be_found() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="not installed: kubernetes-validate")
    wrong = the("StatefulSet") | {"spec": the("StatefulSet")["spec"] | {"replica": 1}}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(wrong, VERSIONS[0], strict=True)


def test_the_parts_find_each_other() -> None:
    workload, service, policy = the("StatefulSet"), the("Service"), the("NetworkPolicy")
    labels = workload["spec"]["template"]["metadata"]["labels"].items()
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    sources = {volume["name"]: volume for volume in pod["volumes"]}
    claims = {claim["metadata"]["name"] for claim in workload["spec"]["volumeClaimTemplates"]}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    for selector in (workload["spec"]["selector"], {"matchLabels": service["spec"]["selector"]}, policy["spec"]["podSelector"]):
        assert selector["matchLabels"].items() <= labels
    assert workload["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["ports"][0]["targetPort"] in ports
    assert policy["spec"]["ingress"][0]["ports"][0]["port"] in ports
    assert {mount["name"] for mount in container["volumeMounts"]} == sources.keys() | claims
    assert sources["config"]["configMap"]["name"] == the("ConfigMap")["metadata"]["name"]
    assert sources["secrets"]["secret"]["secretName"] == the("Secret")["metadata"]["name"]
    assert {one["metadata"].get("namespace") for one in rendered() if one["kind"] != "Namespace"} == {
        the("Namespace")["metadata"]["name"]
    }


def test_the_pod_may_do_what_the_restricted_standard_allows_and_no_more() -> None:
    pod = the("StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert the("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    user = f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}\n"
    assert user in (ROOT / "Dockerfile").read_text()
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]


def test_the_image_is_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (container,) = the("StatefulSet")["spec"]["template"]["spec"]["containers"]

    assert container["image"] == f"event-bridge:{version}"


def mounted(directory: Path) -> tuple[list[str], dict[str, str]]:
    """Put the files of the pod into a directory, as the kubelet does; return its arguments and variables with these places."""
    (container,) = the("StatefulSet")["spec"]["template"]["spec"]["containers"]
    contents = {"config": the("ConfigMap")["data"], "secrets": the("Secret")["stringData"], "journal": {}, "tmp": {}}
    places = {}
    for mount in container["volumeMounts"]:
        place = directory / mount["name"]
        (place / "..version").mkdir(parents=True)
        (place / "..data").symlink_to("..version")
        for name, content in contents[mount["name"]].items():
            (place / "..version" / name).write_text(content)
            (place / name).symlink_to(f"..data/{name}")
        places[mount["mountPath"]] = str(place)

    def here(text: str) -> str:
        # The longest first: one place's name may begin like another's.
        for place in sorted(places, key=len, reverse=True):
            if text == place or text.startswith(f"{place}/"):
                return places[place] + text.removeprefix(place)
        return text

    return [here(word) for word in container["args"]], {one["name"]: here(one["value"]) for one in container["env"]}


def test_the_bridge_takes_what_the_pod_gives_it(tmp_path: Path) -> None:
    arguments, variables = mounted(tmp_path)
    config = arguments[arguments.index("--config") + 1]
    probed = the("StatefulSet")["spec"]["template"]["spec"]

    settings = load(Path(config), variables)

    assert arguments[0] == "run"
    assert command("check", "--config", config, cwd=tmp_path, seconds=30, **variables).returncode == 0
    assert settings.streams["acme"].model_dump()["api_key"].get_secret_value() == "put-the-key-here"
    assert settings.journal.path == tmp_path / "journal" / "journal.db"
    (container,) = probed["containers"]
    assert settings.http.listen == f"0.0.0.0:{container['ports'][0]['containerPort']}"
    assert probed["terminationGracePeriodSeconds"] > settings.shutdown.grace
    (claim,) = the("StatefulSet")["spec"]["volumeClaimTemplates"]
    size = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 1024**3
    assert size > settings.journal.max_bytes + RESERVE


def test_the_probes_ask_what_there_is() -> None:
    (container,) = the("StatefulSet")["spec"]["template"]["spec"]["containers"]
    asked = {name: probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")}

    assert asked == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}


def test_the_kustomization_of_the_documentation_names_the_image(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "deployment.md").read_text(), re.MULTILINE | re.DOTALL)
    own = tmp_path / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text(example.replace("../deploy", os.path.relpath(ROOT / "deploy", own)))

    images = [
        one["spec"]["template"]["spec"]["containers"][0]["image"] for one in rendered(own) if one["kind"] == "StatefulSet"
    ]

    assert [image.rpartition(":")[0] for image in images] == ["images.example.com/event-bridge"]
