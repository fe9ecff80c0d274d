"""Receivers of webhooks, each of which counts its own requests, and proxies before a stream."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.peers.peer import Peer, Running, install, port, process

_WSGI = """
def app(environ, start_response):
    environ['wsgi.input'].read(int(environ.get('CONTENT_LENGTH') or 0))
    if environ['REQUEST_METHOD'] == 'POST':
        open('arrived', 'a').write('1\\n')
    start_response('204 No Content', [])
    return []
"""
_ASGI = """
async def app(scope, receive, send):
    if scope['type'] != 'http':
        return
    while (await receive()).get('more_body'):
        pass
    if scope['method'] == 'POST':
        open('arrived', 'a').write('1\\n')
    await send({'type': 'http.response.start', 'status': 204, 'headers': []})
    await send({'type': 'http.response.body'})
"""
_NODE = """
const http = require('http'), fs = require('fs')
http.createServer((request, response) => {
  request.resume().on('end', () => {
    if (request.method === 'POST') fs.appendFileSync('arrived', '1\\n')
    response.writeEarlyHints({ link: '</style.css>; rel=preload' })
    response.writeHead(204).end()
  })
}).listen(+process.argv[2], '127.0.0.1')
"""
_NGINX = """
daemon off; pid {directory}/pid; error_log stderr;
events {{}}
http {{
  access_log {directory}/arrived;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{ listen 127.0.0.1:{port}; location / {{ {rule} }} }}
}}
"""
_HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend front
  bind 127.0.0.1:{port}
  default_backend back
backend back
  server one {target}
"""

Run = Callable[[Path, str], contextlib.AbstractContextManager[Running]]


def _counted(directory: Path, at: int) -> Running:
    arrived = directory / "arrived"
    return Running(
        {"type": "webhook", "url": f"http://127.0.0.1:{at}/"},
        lambda: len(arrived.read_text().splitlines()) if arrived.exists() else 0,
    )


def _python(requirement: str, source: str, *command: str) -> Run:
    @contextlib.contextmanager
    def run(directory: Path, _: str) -> Iterator[Running]:
        install(directory, sys.executable, "-m", "venv", "venv")
        install(directory, "venv/bin/pip", "install", "--quiet", requirement)
        (directory / "receiver.py").write_text(source)
        at = port()
        arguments = [argument.format(port=at) for argument in command]
        with process(directory, at, "venv/bin/python", "-m", *arguments):
            yield _counted(directory, at)

    return run


@contextlib.contextmanager
def _node(directory: Path, _: str) -> Iterator[Running]:
    (directory / "receiver.js").write_text(_NODE)
    at = port()
    with process(directory, at, "node", "receiver.js", at):
        yield _counted(directory, at)


@contextlib.contextmanager
def _nginx(directory: Path, at: int, rule: str) -> Iterator[None]:
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, port=at, rule=rule))
    with process(directory, at, "nginx", "-p", directory, "-c", config):
        yield


@contextlib.contextmanager
def _nginx_receiver(directory: Path, _: str) -> Iterator[Running]:
    at = port()
    with _nginx(directory, at, "return 204;"):
        arrived = directory / "arrived"
        # The check's and the opening's requests are no POST.
        yield Running(
            {"type": "webhook", "url": f"http://127.0.0.1:{at}/"},
            lambda: arrived.read_text().count('"POST '),
        )


@contextlib.contextmanager
def _nginx_stream(directory: Path, url: str) -> Iterator[Running]:
    at = port()
    rule = (
        f"proxy_pass http://{url.removeprefix('ws://')}; proxy_http_version 1.1;"
        " proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;"
    )
    with _nginx(directory, at, rule):
        yield Running(url=f"ws://127.0.0.1:{at}")


@contextlib.contextmanager
def _haproxy_stream(directory: Path, url: str) -> Iterator[Running]:
    at = port()
    config = directory / "haproxy.cfg"
    config.write_text(_HAPROXY.format(port=at, target=url.removeprefix("ws://")))
    with process(directory, at, "haproxy", "-db", "-f", config):
        yield Running(url=f"ws://127.0.0.1:{at}")


RECEIVERS = [
    Peer(
        "gunicorn 23.0.0, one worker",
        _python("gunicorn==23.0.0", _WSGI, "gunicorn", "-b", "127.0.0.1:{port}", "receiver:app"),
        [],
    ),
    Peer("uvicorn 0.35.0", _python("uvicorn==0.35.0", _ASGI, "uvicorn", "--port", "{port}", "receiver:app"), []),
    Peer("waitress 3.0.2", _python("waitress==3.0.2", _WSGI, "waitress", "--listen", "127.0.0.1:{port}", "receiver:app"), []),
    Peer("Node.js, with 103 Early Hints before each answer", _node, ["node"]),
    Peer("nginx of Debian", _nginx_receiver, ["nginx"]),
]
PROXIES = [Peer("nginx of Debian", _nginx_stream, ["nginx"]), Peer("HAProxy of Debian", _haproxy_stream, ["haproxy"])]
