"""Receivers that nobody here wrote."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.sink import Unavailable
from sinks.webhook.settings import WebhookSettings
from sinks.webhook.sink import WebhookSink
from tests.contract.harness import make_entries
from tests.support.ports import free_port
from tests.support.servers.receiver import make_certificate
from tests.support.waiting import until

NGINX = """
daemon off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    server {{
        listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
        ssl_verify_client on; ssl_client_certificate {client}; client_max_body_size 8k;
        location / {{ return 204; }}
        proxy_ssl_certificate {client}; proxy_ssl_certificate_key {client_key};
        location /size {{ proxy_pass https://127.0.0.1:{port}/; }}
        location /old {{ return 308 /new/$is_args$args; }}
    }}
}}
"""

NODE = """
require('http').createServer((request, response) => request.resume().on('end', () => {
    response.writeEarlyHints({ link: '</style.css>; rel=preload' });
    response.writeProcessing();
    response.writeHead(201).end();
})).listen(Number(process.argv[1]), '127.0.0.1');
"""


@contextmanager
def running(command: Sequence[str | Path], url: str, **given: Any) -> Iterator[WebhookSink]:
    """Start a receiver, and open a sink for it."""
    process = subprocess.Popen(command)
    sink = WebhookSink("hook", WebhookSettings.model_validate({"url": url, "timeout": 10} | given))

    def is_open() -> bool:
        try:
            sink.open()
        except Unavailable:
            return False
        return True

    try:
        until(is_open)
        yield sink
    finally:
        sink.close()
        process.terminate()
        process.wait(10)


@contextmanager
def nginx(folder: Path, path: str = "/", **given: Any) -> Iterator[WebhookSink]:
    """Start an nginx that wants a certificate of its clients."""
    (certificate, key), (client, client_key) = make_certificate(folder), make_certificate(folder, "bridge")
    port = free_port()
    text = NGINX.format(folder=folder, port=port, certificate=certificate, key=key, client=client, client_key=client_key)
    (folder / "nginx.conf").write_text(text)
    ours = {"cert_file": client, "key_file": client_key, "ca_file": certificate}
    settings = ours | {"url": f"https://localhost:{port}{path}"} | given
    with running(["nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"], **settings) as sink:
        yield sink


needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


@needs_nginx
def test_nginx_accepts(tmp_path: Path) -> None:
    with nginx(tmp_path) as sink:
        assert sink.deliver(make_entries(200)) == []


@needs_nginx
def test_nginx_refuses_our_certificate_with_400(tmp_path: Path) -> None:
    with nginx(tmp_path, cert_file=None, key_file=None) as sink, pytest.raises(Unavailable) as unavailable:
        sink.deliver(make_entries(60))

    assert "answered 400 Bad Request: 400 No required SSL certificate was sent" in str(unavailable.value)


@needs_nginx
def test_nginx_refuses_large_batches(tmp_path: Path) -> None:
    with nginx(tmp_path, "/size", format="lines") as sink:
        assert sink.deliver(make_entries(400)) == []


@needs_nginx
def test_nginx_redirects(tmp_path: Path) -> None:
    with nginx(tmp_path, "/old?key=geheim") as sink, pytest.raises(Unavailable) as unavailable:
        sink.deliver(make_entries(1))

    assert "/new/; redirects are not followed" in str(unavailable.value)
    assert "geheim" not in str(unavailable.value)


@needs_nginx
def test_nginx_is_asked_for_http_on_its_port_for_https(tmp_path: Path) -> None:
    with nginx(tmp_path) as sink:
        plain = WebhookSink("hook", WebhookSettings(url=sink._settings.url.replace("https", "http")))
        plain.open()
        with pytest.raises(Unavailable, match=r"answered 400 Bad Request: .*plain HTTP request was sent to HTTPS port"):
            plain.deliver(make_entries(60))
        plain.close()


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_sends_interim_responses() -> None:
    port = free_port()
    with running(["node", "-e", NODE, str(port)], f"http://127.0.0.1:{port}/") as sink:
        assert sink.deliver(make_entries(100)) == []
