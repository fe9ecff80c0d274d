import pytest

from sinks.webhook.url import read_url


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://hooks.example.com/geheim", "must look like"),
        ("hooks.example.com/geheim", "must look like"),
        ("https:///geheim", "must look like"),
        ("", "must look like"),
        ("https://geheim@hooks.example.com/", "instead"),
        ("https://user:geheim@hooks.example.com/", "`username` and `password`"),
        ("https://hooks.example.com:geheim/", "not a URL"),
        ("https://hooks.example.com:99999/geheim", "not a URL"),
        ("http://[::1/geheim", "not a URL"),
        (f"https://{'a' * 64}.example.com/geheim", "not a URL"),
    ],
)
def test_what_is_no_address_of_a_receiver_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        read_url(text)

    assert "geheim" not in str(error.value)
