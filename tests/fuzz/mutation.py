"""Inputs that are nearly right: seeds with bytes changed, cut out, repeated or put together."""

import random
from collections.abc import Iterator, Sequence


def mutations(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Yield so many; the same seed gives the same."""
    chance = random.Random(seed)
    for _ in range(count):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            _mutate(data, seeds, chance)
        yield bytes(data)


def _mutate(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 1, 2, 8, 64)))
    match chance.randrange(6):
        case 0:
            data[at:end] = bytes(chance.randrange(256) for _ in range(end - at))
        case 1:
            del data[at:end]
        case 2:
            data[at:at] = data[at:end] * chance.choice((1, 2, 50))
        case 3:
            data[at:at] = chance.choice(
                (b"\x00", b"\xff", b"\\u0000", b"\\ud800", b"1e999", b"-0", b"null", b"{}", b"[]", b'"', b"\r\n", b"\xc3\x28")
            )
        case 4:
            data[at:] = chance.choice(seeds)[at:]
        case 5:
            data[at:end] = str(chance.choice((0, -1, 2**31, 2**63, 10**30, 1e308))).encode()
