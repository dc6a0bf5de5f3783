"""Settings as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.errors import UsageError
from pyvmm.host.parameters import (
    PARAMETERS,
    followers,
    is_on,
    parse_settings,
    same,
    setting_value,
    show_settings,
    verifiable,
)

BOOLEANS = sorted(name for name, parameter in PARAMETERS.items() if not parameter.number)
NUMBERS = sorted(name for name, parameter in PARAMETERS.items() if parameter.number)


@given(st.sampled_from(BOOLEANS), st.sampled_from(("on", "off", "Y", "n", "yes", "no", "1", "0", "True", "false")))
def test_booleans_in_every_spelling(name: str, word: str) -> None:
    value = parse_settings([f"{name}={word}"])[name]
    assert value == ("1" if word.lower() in ("on", "y", "yes", "1", "true") else "0")
    assert setting_value(name, value == "1") == value
    assert is_on(value) is (value == "1")


@given(st.sampled_from(NUMBERS), st.integers(0, 2**32 - 1))
def test_numbers(name: str, value: int) -> None:
    assert parse_settings([f"{name}={value}"]) == {name: str(value)} == {name: setting_value(name, value)}


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(BOOLEANS), st.booleans()),
    st.dictionaries(st.sampled_from(NUMBERS), st.integers(0, 2**32 - 1)),
)
def test_what_is_shown_parses_to_the_same(booleans: dict[str, bool], numbers: dict[str, int]) -> None:
    values = {name: setting_value(name, value) for name, value in {**booleans, **numbers}.items()}
    assert parse_settings(show_settings(values).split()) == values


@settings(deadline=None)
@given(st.text(max_size=40))
def test_garbage_is_a_usage_error_in_one_line(text: str) -> None:
    try:
        values = parse_settings([text])
    except UsageError as error:
        assert "\n" not in str(error) or "\n" in text
    else:
        name, value = next(iter(values.items()))
        assert name in PARAMETERS and (value.isdecimal() or value in PARAMETERS[name].words)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["npt"], "write NAME=VALUE"),
        (["=on"], "no setting ''"),
        (["foo=on"], "there are ept, vpid"),
        (["npt=7"], "takes on, off$"),
        (["npt="], "takes on, off$"),
        (["nx_huge_pages=sometimes"], "takes on, off, auto"),
        (["nx_huge_pages_recovery_ratio=-1"], "takes a number"),
        (["nx_huge_pages_recovery_ratio=4294967296"], "takes a number"),
        (["nx_huge_pages_recovery_ratio=\u0663"], "takes a number"),
        (["npt=on", "npt=off"], "two values"),
    ],
)
def test_what_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_settings(texts)


def test_the_same_twice_is_fine() -> None:
    assert parse_settings(["npt=on", "npt=1"]) == {"npt": "1"}


def test_what_the_kernel_shows() -> None:
    assert same("Y", "1") and same("0", "N") and same("60", "60") and not same("Y", "N") and not same("", "0")
    assert is_on("Y") and is_on("1") and not is_on("N") and not is_on("") and not is_on(None)
    assert verifiable("nx_huge_pages", "1") and not verifiable("nx_huge_pages", "auto")


def test_followers() -> None:
    assert followers([]) == frozenset()
    assert {"unrestricted_guest", "tdp_mmu"} <= followers(["vpid", "ept"])
    assert followers(["nx_huge_pages"]) == frozenset()
