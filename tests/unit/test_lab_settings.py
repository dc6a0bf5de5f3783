"""What a lab can be asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.errors import UsageError
from pyvmm.host.lab import Lab
from pyvmm.host.lab.settings import module_parameters, parse_settings
from pyvmm.host.parameters import PARAMETERS


@pytest.mark.parametrize(
    ("cpu", "texts", "expected"),
    [
        ("amd", [], {}),
        ("amd", ["npt=off"], {"kvm_amd": {"npt": "0"}}),
        ("amd", ["npt=Y", "tdp_mmu=0"], {"kvm_amd": {"npt": "1"}, "kvm": {"tdp_mmu": "0"}}),
        ("intel", ["ept=on", "vpid=n"], {"kvm_intel": {"ept": "1", "vpid": "0"}}),
        ("intel", ["nx_huge_pages=auto"], {"kvm": {"nx_huge_pages": "auto"}}),
    ],
)
def test_settings_go_to_their_modules(cpu: str, texts: list[str], expected: dict[str, dict[str, str]]) -> None:
    assert parse_settings(cpu, texts) == expected


@pytest.mark.parametrize(
    ("cpu", "text", "words"),
    [
        ("amd", "ept=off", "kvm_intel"),
        ("intel", "npt=off", "kvm_amd"),
        ("amd", "npt", "NAME=VALUE"),
        ("amd", "npt=maybe", "npt=maybe"),
        ("amd", "turbo=on", "turbo"),
        ("arm", "npt=on", "arm"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(cpu: str, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_settings(cpu, [text])
    assert "\n" not in str(caught.value)


@given(
    st.sampled_from(sorted(PARAMETERS)),
    st.one_of(st.booleans(), st.integers(), st.text()),
    st.sampled_from(["amd", "intel"]),
)
def test_any_setting_is_sorted_or_refused(name: str, value: bool | int | str, cpu: str) -> None:
    try:
        found = module_parameters(cpu, {name: value})
    except UsageError:
        return
    ((module, parameters),) = found.items()
    assert module == PARAMETERS[name].module
    assert module in ("kvm", f"kvm_{cpu}")
    assert parameters[name].isalnum()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": "1M"}, "too small"),
        ({"cpus": 0}, "CPUs"),
        ({"cpus": 99}, "CPUs"),
        ({"share": "/nowhere/at/all"}, "no folder"),
        ({"share": "/"}, "whole file system"),
        ({"cpu": "z80"}, "z80"),
        ({"ept": True}, "kvm_intel"),
    ],
)
def test_a_lab_that_cannot_be_is_refused_before_anything_starts(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Lab(**options)  # type: ignore[arg-type]
