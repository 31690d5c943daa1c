"""Loading weights: what fits, and refusals that change nothing."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from ovseg import checkpoint
from ovseg.checkpoint import hub_or_cache, load_weights, read_architecture, read_state
from ovseg.structures import InputError


class Payload:
    """Creates a folder when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "extra": Payload(tmp_path / "marker")}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"evil\.ckpt contains Python objects.*never executed"):
        read_state(tmp_path / "evil.ckpt")
    assert not (tmp_path / "marker").exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert (tmp_path / "marker").exists()  # the payload works


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    file = tmp_path / f"weights{suffix}"
    weights = {"weight": torch.zeros(5000)}
    save_file(weights, file) if suffix == ".safetensors" else torch.save(weights, file)
    intact = file.read_bytes()
    file.write_bytes({"cut": intact[: len(intact) // 2], "empty": b"", "text": b"<html>not found</html>"}[damage])
    with pytest.raises(InputError, match=rf"{re.escape(str(file))} (is not a readable|contains)"):
        read_state(file)


def test_missing_files_and_other_contents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not found: .*nothing\.pt"):
        read_state(tmp_path / "nothing.pt")
    torch.save(torch.zeros(1), tmp_path / "tensor.pt")
    with pytest.raises(InputError, match="contains a Tensor, not a state dict"):
        read_state(tmp_path / "tensor.pt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(InputError, match=r"foreign\.ckpt contains no network 'clip' \(it has: none from ovseg\)"):
        read_architecture(tmp_path / "foreign.ckpt", "clip")


@pytest.mark.parametrize("form", ["safetensors", "bare", "trainer"])
def test_weights_load_from_every_format(tmp_path: Path, form: str) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    state = source.state_dict()
    if form == "safetensors":
        save_file(state, tmp_path / "w.safetensors")
        load_weights(target, tmp_path / "w.safetensors")
    elif form == "bare":
        torch.save(state, tmp_path / "w.pt")
        load_weights(target, tmp_path / "w.pt")
    else:
        others = {"other.weight": torch.zeros(1)}
        torch.save({"state_dict": {f"net.{k}": v for k, v in state.items()} | others}, tmp_path / "w.ckpt")
        load_weights(target, tmp_path / "w.ckpt", "net.")
    assert torch.equal(source.weight, target.weight) and torch.equal(source.bias, target.bias)


@pytest.mark.parametrize(
    ("change", "report"),
    [
        ({"bias": None}, r"1 missing \(bias\)"),
        ({"more": torch.zeros(1)}, r"1 unexpected \(more\)"),
        ({"weight": torch.zeros(2, 2)}, r"1 of another shape \(weight\)"),
        ({"weight": 7}, r"1 of another shape \(weight\)"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(
    tmp_path: Path, change: dict[str, Any], report: str
) -> None:
    target = nn.Linear(3, 2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    weights = {key: value for key, value in (nn.Linear(3, 2).state_dict() | change).items() if value is not None}
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"w\.pt does not fit this Linear: {report}; give weights of the same"):
        load_weights(target, tmp_path / "w.pt")
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the hub to a closed port, with the library in online mode."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_network")
def test_an_unreachable_hub_switches_to_the_cache_without_retries(tmp_path: Path) -> None:
    start = time.monotonic()
    with hub_or_cache("somebody/something"):
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    with hub_or_cache(str(tmp_path)):
        assert not constants.is_offline_mode()  # a local path needs no hub
    assert time.monotonic() - start < 2


def test_offline_mode_does_not_query_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.files, "_hub_answers", lambda: pytest.fail("queried the hub"))
    with hub_or_cache("somebody/something"):
        assert constants.is_offline_mode()
