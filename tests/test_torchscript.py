"""TorchScript archives yield the weights of `torch.jit.load`, without running anything in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ovseg.checkpoint import read_state
from ovseg.structures import InputError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


class Part(nn.Module):
    """Has half-precision parameters, buffers, and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2).half()
        self.twin = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.mask = torch.ones(2)  # neither a parameter nor a buffer

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.twin(x)) * self.mask


class Whole(nn.Module):
    """Has nested modules, shared and non-contiguous parameters, and plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Part(), Part()
        self.second.twin.weight = self.first.twin.weight
        self.view = nn.Parameter(torch.arange(12.0).view(3, 4).T[1:])  # non-contiguous, with an offset
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("size", torch.tensor(224))
        self.sizes, self.names, self.none = [1, 2], {"a": 1}, None

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


class Evil(nn.Module):
    """Writes a file when it is loaded."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.marker = marker

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, str, bool]:
        return self.weight, self.marker, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.weight, self.marker, self.training = state
        torch.save(state[0], state[1])


class Payload:
    """Creates a folder when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.marker,)


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_weights_equal_those_of_torch(tmp_path: Path, form: str) -> None:
    module = Whole().eval()
    archive = torch.jit.script(module) if form == "scripted" else torch.jit.trace(module, torch.ones(2, 3))
    archive.save(str(tmp_path / "model.pt"))
    expected, state = torch.jit.load(tmp_path / "model.pt").state_dict(), read_state(tmp_path / "model.pt")
    assert list(state) == list(expected) == list(module.state_dict())
    for key, value in expected.items():
        assert state[key].dtype == value.dtype and torch.equal(state[key], value), key


def test_code_of_a_module_is_refused_and_not_run(tmp_path: Path) -> None:
    file, marker = tmp_path / "evil.pt", tmp_path / "marker"
    torch.jit.script(Evil(str(marker))).save(str(file))
    marker.unlink(missing_ok=True)  # saving writes it as well
    with pytest.raises(InputError, match=r"evil\.pt contains Python objects.*never executed"):
        read_state(file)
    assert not marker.exists()
    torch.jit.load(file)
    assert marker.exists()  # torch's own reader runs the code


def test_code_in_the_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.jit.script(Part()).save(str(tmp_path / "good.pt"))
    content = pickle.dumps(Payload(marker), protocol=2)
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "evil.pt", "w") as evil:
        for name in good.namelist():
            evil.writestr(name, content if name.endswith("data.pkl") else good.read(name))
    with pytest.raises(InputError, match=r"evil\.pt contains Python objects.*never executed"):
        read_state(tmp_path / "evil.pt")
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()


@pytest.mark.parametrize("missing", ["/data/0", "/code/", "/data.pkl"])
def test_archives_that_lack_a_part_are_refused(tmp_path: Path, missing: str) -> None:
    torch.jit.script(nn.Sequential(Part())).save(str(tmp_path / "good.pt"))
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            if missing not in name:
                bad.writestr(name, good.read(name))
    with pytest.raises(InputError, match=r"bad\.pt is not a readable weights file"):
        read_state(tmp_path / "bad.pt")
