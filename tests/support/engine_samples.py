"""Messages of a Docker Engine."""

import json
from typing import Any, Final

DAEMON = "7TRN:IPZB:QYBB:VPBQ:UMPP:KARE:6ZNR:XE6T:7EWV:PKF4:ZOJD:TPYS"
CLUSTER = "abajmipo7b4xz5ip2nrla6b11"
NODE = "24ifsmvkjbyhk2ro4pbq4x8wo"
CONTAINER = "ede54ee1afda366ab42f824e8a5ffd195155d853ceaec74a927f249ea270c743"
NANOS = 1461943101607533796
NOW: Final = 1_795_464_356_682_930_000

CONTAINER_URI = "/api/app/v1/acme/container/36a32dc4-ca8d-59d7-afbb-f0dc32bcac96/"
SERVICE_URI = "/api/app/v1/acme/service/0f52f3c5-fb65-59d8-8b6d-5909b5889a08/"
NODE_URI = "/api/infra/v1/acme/node/4939dfea-09cf-5e20-8d3d-d73902696679/"
STACK_URI = "/api/app/v1/acme/stack/55710a04-bfa6-5f61-a37f-541ffc4930e7/"
CLUSTER_URI = "/api/infra/v1/acme/nodecluster/cc4cf519-441a-5259-bf35-bb7b6bc4f6ab/"

SWARM_LABELS: dict[str, Any] = {
    "com.docker.swarm.service.id": "9mnpnzenvg8p8tdbtq4wvbkcz",
    "com.docker.swarm.node.id": NODE,
    "com.docker.stack.namespace": "web",
}


def engine_event(action: str = "start", nanos: int = NANOS, kind: str = "container", **attributes: Any) -> dict[str, Any]:
    return {
        "Type": kind,
        "Action": action,
        "Actor": {"ID": CONTAINER, "Attributes": {"image": "alpine", "name": "my-container", **attributes}},
        "scope": "local",
        "time": nanos // 10**9,
        "timeNano": nanos,
    }


def line(raw: dict[str, Any]) -> bytes:
    return json.dumps(raw).encode() + b"\n"


def chunked(*contents: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(content), content) for content in contents)
