"""The proxy on the way to a stream."""

from urllib.parse import urlsplit

import pytest

from bridge.sources.dockercloud.handshake import Proxy, proxy_for

WS, WSS = "ws://stream.example.com/events", "wss://stream.example.com/events"


@pytest.mark.parametrize(
    ("url", "setting", "environment", "expected"),
    [
        (WSS, None, {}, None),
        (WSS, None, {"https_proxy": "http://proxy:3128"}, Proxy("proxy", 3128, None)),
        (WSS, None, {"HTTPS_PROXY": "http://proxy:3128/"}, Proxy("proxy", 3128, None)),
        (WSS, None, {"https_proxy": "proxy:3128", "HTTPS_PROXY": "other:1"}, Proxy("proxy", 3128, None)),
        (WSS, None, {"https_proxy": "", "HTTPS_PROXY": "other:1"}, None),
        (WSS, None, {"http_proxy": "proxy:3128"}, None),
        (WS, None, {"http_proxy": " proxy "}, Proxy("proxy", 80, None)),
        (WS, None, {"http_proxy": "user:p%40ss%3Aword@[::1]:3128"}, Proxy("::1", 3128, "user:p@ss:word")),
        (WS, None, {"http_proxy": "http://us%40er@proxy:3128"}, Proxy("proxy", 3128, "us@er:")),
        (WS, "http://ours:1", {"http_proxy": "http://proxy:3128"}, Proxy("ours", 1, None)),
        (WS, "http://ours:1", {"no_proxy": "example.com"}, None),
    ],
)
def test_the_proxy_is_that_of_the_settings_or_of_the_variable_for_the_scheme(
    url: str, setting: str | None, environment: dict[str, str], expected: Proxy | None
) -> None:
    assert proxy_for(urlsplit(url), setting, environment) == expected


@pytest.mark.parametrize(
    ("url", "no_proxy", "direct"),
    [
        (WS, "stream.example.com", True),
        (WS, "STREAM.example.com:80", False),
        ("ws://stream.example.com:80/", "stream.example.com:80", True),
        (WS, "other, .example.com", True),
        (WS, "example.com", True),
        (WS, "ample.com", False),
        (WS, "*", True),
        (WS, "other,*", True),
        (WS, "10.0.0.0/8", False),
        (WS, "", False),
        ("ws://10.1.2.3:8080/", "10.0.0.0/8", True),
        ("ws://10.1.2.3:8080/", "10.9.9.9/8", True),
        ("ws://11.1.2.3:8080/", "10.0.0.0/8", False),
        ("ws://10.1.2.3:8080/", "10.1.2.3", True),
        ("ws://[fd00::7]:8080/", "10.0.0.0/8,fd00::/8", True),
        ("ws://[fd00::7]:8080/", "fd00::7", True),
    ],
)
def test_no_proxy_has_hosts_domains_and_networks(url: str, no_proxy: str, direct: bool) -> None:
    found = proxy_for(urlsplit(url), None, {"http_proxy": "http://proxy:3128", "NO_PROXY": no_proxy})
    assert (found is None) is direct


@pytest.mark.parametrize("scheme", ["https", "socks4", "socks4a", "socks5", "socks5h", "SOCKS5H"])
def test_a_proxy_of_another_kind_is_refused_by_its_kind(scheme: str) -> None:
    with pytest.raises(ValueError, match=rf"^https_proxy names a proxy with {scheme.lower()}://, only http:// is supported$"):
        proxy_for(urlsplit(WSS), None, {"HTTPS_PROXY": f"{scheme}://user:hunter2@proxy:3128"})


@pytest.mark.parametrize(
    "value",
    [
        "http://",
        "http://user:hunt/er2@proxy:1",
        "proxy:port",
        "http://proxy:0",
        "http://proxy:1/path",
        "user:hunter2@",
        "ftp://proxy",
    ],
)
def test_a_proxy_that_is_not_understood_is_refused_without_its_password(value: str) -> None:
    with pytest.raises(ValueError, match=r"^http_proxy must look like http://host:port") as raised:
        proxy_for(urlsplit(WS), None, {"http_proxy": value})
    assert "hunt" not in str(raised.value)
