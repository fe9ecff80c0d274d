#!/bin/sh
# NO_PROXY=host:port means "no proxy for this port of this host" to Python's urllib. To requests it does so for a name, but not for
# an IPv4 address. libcurl knows no ports there at all. An entry that is not understood fits nothing, without a word: the request
# goes to the proxy, with its headers, among them credentials.
#
# pycurl 7.49.0 (libcurl 8.23.0), requests 2.34.0, Python's urllib; a receiver and a proxy on loopback, one variable for all three.
# Seen:
#   NO_PROXY=localhost:PORT  urllib direct, requests direct, libcurl proxy
#   NO_PROXY=127.0.0.1:PORT  urllib direct, requests proxy, libcurl proxy
#   NO_PROXY=127.0.0.1       urllib direct, requests direct, libcurl direct
# So one variable of a deployment sends the requests of one program past the proxy, and those of another one to it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pycurl==7.49.0 requests==2.34.0
cat >"$folder/show.py" <<'PYTHON'
import io
import os
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pycurl
import requests


def serve(name):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = name.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def by_libcurl(url):
    body, curl = io.BytesIO(), pycurl.Curl()
    curl.setopt(pycurl.URL, url)
    curl.setopt(pycurl.WRITEDATA, body)
    curl.perform()
    return body.getvalue().decode()


receiver, proxy = serve("direct"), serve("proxy")
os.environ["http_proxy"] = f"http://127.0.0.1:{proxy}"
print(pycurl.version.split()[0], pycurl.version.split()[1], "requests/" + requests.__version__)
seen = {}
for host, entry in (("localhost", f"localhost:{receiver}"), ("127.0.0.1", f"127.0.0.1:{receiver}"), ("127.0.0.1", "127.0.0.1")):
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = entry
    url, form = f"http://{host}:{receiver}/", entry.replace(str(receiver), "PORT")
    seen[form] = (urllib.request.urlopen(url).read().decode(), requests.get(url).text, by_libcurl(url))
    print(f"NO_PROXY={form}: urllib {seen[form][0]}, requests {seen[form][1]}, libcurl {seen[form][2]}")
assert seen == {
    "localhost:PORT": ("direct", "direct", "proxy"),
    "127.0.0.1:PORT": ("direct", "proxy", "proxy"),
    "127.0.0.1": ("direct", "direct", "direct"),
}, seen
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
