"""The locations of caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovseg.cache import cache_folder


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"OVSEG_CACHE": "/own", "XDG_CACHE_HOME": "/caches"}, "/own/text"),
        ({"OVSEG_CACHE": "~/own"}, "/home/me/own/text"),
        ({"XDG_CACHE_HOME": "/caches"}, "/caches/ovseg/text"),
        ({"XDG_CACHE_HOME": "caches"}, "/home/me/.cache/ovseg/text"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/ovseg/text"),
        ({}, "/home/me/.cache/ovseg/text"),
    ],
)
def test_environment_variables_decide_the_cache_folder(
    variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OVSEG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder("text") == Path(folder)
