"""Dropout's random bits: published vectors, the layout by hand, statistics, the native masks."""

from __future__ import annotations

import pytest
import torch
from op_checks import need

from fastadv import backends
from fastadv.ops.philox import (
    check_dropout,
    dropout_ref,
    keep_mask_ref,
    keep_scale,
    philox_ref,
    threshold_of,
)

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)

# From kat_vectors of Random123, the authors' library: counter, key, rounds, result.
KNOWN = [
    ((0,) * 4, (0,) * 2, 7, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    ((ONES,) * 4, (ONES,) * 2, 7, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (*PI, 7, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
    ((0,) * 4, (0,) * 2, 10, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, 10, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (*PI, 10, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("counter", "key", "rounds", "words"), KNOWN)
def test_known_vectors(
    counter: tuple[int, ...], key: tuple[int, ...], rounds: int, words: tuple[int, ...]
) -> None:
    got = philox_ref(torch.tensor(counter), torch.tensor(key), rounds)
    assert got.tolist() == list(words)


def test_seven_rounds_are_the_default() -> None:
    counter, key, _, words = KNOWN[2]
    assert philox_ref(torch.tensor(counter), torch.tensor(key)).tolist() == list(words)


def bits_by_hand(seed: int, site: int, row: int, column: int) -> int:
    """An element's 16 bits, in Python's integers alone."""
    block, within = divmod(column, 128)
    c = [16 * block + within % 16, row, site, 0]
    k = [seed % 2**32, seed // 2**32 % 2**32]
    for _ in range(7):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second // 2**32 ^ c[1] ^ k[0], second % 2**32, first // 2**32 ^ c[3] ^ k[1],
             first % 2**32]  # fmt: skip
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    word, half = divmod(within // 16, 2)
    return c[word] >> 16 * half & 0xFFFF


@pytest.mark.parametrize("seed", [0, 1, -1, 2**40 + 3, -(2**63)])
def test_mask_by_hand(seed: int) -> None:
    rows = [0, 3, 2**31, 2**32 - 1]
    mask = keep_mask_ref(torch.tensor([seed]), 11, torch.tensor(rows), 300, 0.3)
    for row, kept in zip(rows, mask.tolist(), strict=True):
        wanted = [bits_by_hand(seed, 11, row, c) >= threshold_of(0.3) for c in range(300)]
        assert kept == wanted


def test_threshold_and_scale() -> None:
    assert [threshold_of(p) for p in (0.0, 0.1, 0.5, 1 - 1e-9)] == [0, 6554, 32768, 65535]
    assert [keep_scale(p) for p in (0.0, 0.5, 1 - 1e-9)] == [1, 2, 65536]


def test_rate_and_independence() -> None:
    """Within five standard deviations, for fixed seeds: of the rate, and of agreement by chance."""
    p, rows, columns = 0.1, torch.arange(400), 640
    rate = threshold_of(p) / 65536
    first = keep_mask_ref(torch.tensor([1]), 0, rows, columns, p)
    number = first.numel()
    assert abs(first.float().mean().item() - (1 - rate)) < 5 * (rate * (1 - rate) / number) ** 0.5
    together = (1 - rate) ** 2 + rate**2
    others = {
        "seed": keep_mask_ref(torch.tensor([2]), 0, rows, columns, p),
        "high word of the seed": keep_mask_ref(torch.tensor([1 + 2**32]), 0, rows, columns, p),
        "site": keep_mask_ref(torch.tensor([1]), 1, rows, columns, p),
        "row": first.roll(1, 0),
        "column": first.roll(1, 1),
        "lane": first.roll(16, 1),
        "word": first.roll(32, 1),
        "block": first.roll(128, 1),
    }
    for name, other in others.items():
        alike = (first == other).float().mean().item()
        assert abs(alike - together) < 5 * (together * (1 - together) / number) ** 0.5, name


def test_dropout_by_hand() -> None:
    x = torch.arange(1.0, 301).view(2, 150)
    seed = torch.tensor([9])
    wanted = [
        [value * 2 if bits_by_hand(9, 4, r, c) >= 32768 else 0 for c, value in enumerate(row)]
        for r, row in enumerate(x.tolist())
    ]
    assert dropout_ref(x, seed, 4, 0.5).tolist() == wanted
    assert dropout_ref(x, None, 4, 0.5) is x
    assert dropout_ref(x, seed, 4, 0.0) is x


def test_not_a_number_is_dropped_too() -> None:
    """A dropped element is 0 whatever it was, in the reference: 0 times infinity is not."""
    x = torch.full((1, 64), torch.inf)
    assert dropout_ref(x, torch.tensor([0]), 0, 0.5).eq(0).any()


def check_native_masks() -> None:
    rows = torch.tensor([0, 1, 77, 2**31 + 5, 2**32 - 1])
    for seed in (0, -1, 2**63 - 1, 123456789012345):
        for site in (0, 7, 2**32 - 1):
            for columns in (0, 1, 15, 17, 64, 127, 128, 129, 300):
                for p in (0.0, 1 / 65536, 0.1, 0.5, 1 - 1e-9):
                    key = torch.tensor([seed])
                    got = torch.ops.fastadv.dropout_factors(key, site, rows, columns, p)
                    wanted = keep_mask_ref(key, site, rows, columns, p) * keep_scale(p)
                    assert torch.equal(got, wanted.float()), (seed, site, columns, p)


def test_native_masks() -> None:
    if backends.extension is None:
        pytest.skip(str(backends.extension_error))
    check_native_masks()


def test_native_bad_input() -> None:
    need("dropout_add_layer_norm", "native", "cpu")
    factors = torch.ops.fastadv.dropout_factors
    seed, rows = torch.tensor([1]), torch.arange(3)
    for args, message in [
        ((seed, 0, rows, 8, 1.0), "p is 1, expected a probability of at least 0 and below 1"),
        ((seed, -1, rows, 8, 0.5), "site is -1, expected a number of 32 bits"),
        ((seed.int(), 0, rows, 8, 0.5), "seed has dtype Int, expected Long"),
        ((torch.tensor([1, 2]), 0, rows, 8, 0.5), "seed has shape .2., expected .1."),
    ]:
        with pytest.raises(ValueError, match=message):
            factors(*args)


@pytest.mark.parametrize(
    ("p", "seed", "site", "message"),
    [
        (-0.1, None, 0, "p is -0.1, expected a probability of at least 0 and below 1"),
        (1.0, None, 0, "p is 1.0, expected a probability"),
        (float("nan"), None, 0, "p is nan, expected a probability"),
        (0.1, torch.tensor([1]), -1, "site is -1, expected a number of 32 bits"),
        (0.1, torch.tensor([1]), 2**32, "site is 4294967296, expected a number of 32 bits"),
        (0.1, torch.tensor([1.0]), 0, "seed has dtype torch.float32, expected int64"),
        (0.1, torch.tensor(1), 0, "seed has shape .., expected .1,."),
    ],
)
def test_bad_dropout(p: float, seed: torch.Tensor | None, site: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_dropout(p, seed, site)


def test_seed_on_another_device() -> None:
    with pytest.raises(ValueError, match="seed is on meta, expected cpu"):
        check_dropout(0.1, torch.tensor([1], device="meta"), 0, torch.device("cpu"))
