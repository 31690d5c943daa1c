"""The script that compares region encoders measures what `ovseg test` measures, and plans every cell once."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stages import CONF, REPOSITORY, ovseg

SCRIPTS = REPOSITORY / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("ablate_regions")
    for name in ("ablate_regions", "ablate_cascade", "ablate_toy"):
        sys.modules.pop(name, None)


def test_an_evaluation_in_process_equals_ovseg_test(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    world = tmp_path / "world5"
    ovseg("toy", "--out", world, "--scenes", 1, "--val_scenes", 6, "--seed", 5)
    labels = world / "stuffthingmaps" / "val2017"
    words = ["--data.images", world / "val2017", "--data.labels", labels, "--trainer.default_root_dir", tmp_path]
    ovseg("test", "--config", CONF / "toy" / "test.yaml", *words)
    expected = json.loads((tmp_path / "report.json").read_text())["metrics"]

    metrics = script.evaluate(script.CROPS.build("toy"), 5)

    for name in ("miou_union", "miou_union_seen", "miou_union_unseen", "mask_accuracy", "mask_accuracy_seen"):
        assert metrics[name] == pytest.approx(100 * expected[name], abs=1e-3), name
    small, large = metrics["mask_accuracy_small"], metrics["mask_accuracy_large"]
    assert min(small, large) <= metrics["mask_accuracy"] <= max(small, large)


def test_every_cell_is_planned_once_and_can_be_built(script: Any) -> None:
    product = [cell for row in script.make_product().values() for cell in row]
    rows = [*script.make_rows().values(), *((cell.encoder, cell.recipe) for cell in product)]
    cells = {cell for row in rows for cell in script.cells(*row)} | {*product}
    assert len({cell.name for cell in cells}) == len(cells)
    settings_of = {encoder: encoder.build("toy").settings() for encoder, _ in rows}
    for encoder, recipe in rows:
        settings = settings_of[encoder]
        assert dict(encoder.options).items() <= settings.items()
        assert (
            bool(settings.get("prompt_keys")) == (recipe == "prompt" or recipe.endswith("both"))
            or encoder.kind != "SinglePassEncoder"
        )


def test_the_curve_runs_from_the_single_pass_to_crops(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade = importlib.import_module("ablate_cascade")
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    monkeypatch.setattr(script, "train", lambda cell: "toy")
    monkeypatch.setattr(cascade, "FOLDER", tmp_path)
    monkeypatch.setattr(script, "SCENES", dict.fromkeys(script.SCENES, 3))
    for seed in script.SCENES:
        ovseg("toy", "--out", tmp_path / f"world{seed}", "--scenes", 1, "--val_scenes", 3, "--seed", seed)
    row = "self key, visual"

    none, every = (cascade.score(row, budget, 0) for budget in (0, 100))

    single_pass = script.evaluate_worlds(cascade.recipes()[row][0].build("toy"))
    crops = script.evaluate_worlds(script.CROPS.build("toy"))
    # as text, since a class that is absent is NaN
    assert json.dumps(none) == json.dumps(single_pass) != json.dumps(crops)
    assert json.dumps(every) == json.dumps(crops)
    times = {**dict.fromkeys(cascade.BUDGETS, 1.0), math.inf: 2.0}
    cascade.draw({budget: [none, every] for budget in times}, times)
    assert (tmp_path / "cascade.png").stat().st_size > 10_000
