"""Two nodes of one process each give the result of one process, and report what they lack."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch

from ovseg.callbacks.pairs import wait_for_others
from ovseg.data.pairs import PairStore, ShardLog
from ovseg.structures import InputError
from tests import nodes, tiny
from tests.stages import CONF, ovseg


class World(NamedTuple):
    """Words of command lines on a few scenes, with networks of random weights, and what one process makes of them."""

    root: Path
    mine: list[object]
    test: list[object]
    fit: list[object]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("nodes")
    ovseg("toy", "--out", root / "world", "--scenes", 9, "--val_scenes", 4)
    tiny.segmenter(root / "segmenter-clip").save_pretrained(root / "segmenter")
    tiny.clip(root / "new").save_pretrained(root / "clip")
    quiet = ["--trainer.enable_progress_bar", "false"]
    masks = ["--model.proposer", "null", "--data.masks", root / "world" / "annotations" / "regions_train2017.json"]
    captions = ["--data.captions", root / "world" / "annotations" / "captions_train2017.json", "--data.short_side", 64]
    images = ["--data.images", root / "world" / "train2017", "--model.clip.model", root / "clip", *quiet]
    mine = ["mine", "--config", CONF / "toy" / "mine.yaml", *masks, *captions, *images, "--shard_images", 2]
    labels = ["--data.labels", root / "world" / "stuffthingmaps" / "val2017", "--model.segmenter", root / "segmenter"]
    test = [
        "test",
        "--config",
        CONF / "toy" / "test.yaml",
        "--data.images",
        root / "world" / "val2017",
        *labels,
        *quiet,
    ]
    batches = ["--data.total_batch_size", 6, "--data.num_workers", 0, "--trainer.max_steps", 3]
    pairs = ["--data.pairs", root / "pairs", "--model.clip.prompt_depth", 2, "--trainer.logger", "false"]
    pairs += ["--data.val.images", root / "world" / "val2017", "--data.val.resize", "[64, 256]"]
    pairs += ["--data.val.labels", root / "world" / "stuffthingmaps" / "val2017"]
    fit = ["fit", "--config", CONF / "toy" / "adapter.yaml", *images, *batches, *pairs]
    for words in ([*mine, "--out", root / "pairs"], [*test, *place(root / "test")], [*fit, *place(root / "fit")]):
        (ended,) = nodes.run(root, words)
        assert ended.code == 0, ended.said
    return World(root, mine, test, fit)


def place(folder: Path) -> list[object]:
    return ["--trainer.default_root_dir", folder]


def files(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in [*store.glob("*.parquet"), *store.glob("*.json")]}


def prompts(run: Path) -> torch.Tensor:
    state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    found: torch.Tensor = state["clip.clip.visual.prompt.mask_embedding"]
    return found


def test_two_nodes_mine_what_one_does(world: World, tmp_path: Path) -> None:
    words = [*world.mine, "--out", tmp_path / "pairs"]
    first, second = nodes.run(tmp_path, words, words)
    assert (first.code, second.code) == (0, 0), first.said + second.said
    assert "MEMBER: 2/2" in second.said and "unique nouns" in first.said and "unique nouns" not in second.said
    assert len(files(world.root / "pairs")) == 6
    assert files(tmp_path / "pairs") == files(world.root / "pairs")


def test_mining_into_folders_that_nodes_do_not_share_is_refused(world: World, tmp_path: Path) -> None:
    # one of them with all shards of a run before
    shutil.copytree(world.root / "pairs", tmp_path / "first")
    ended = nodes.run(tmp_path, *([*world.mine, "--out", tmp_path / name] for name in ("first", "second")))
    for one, name in zip(ended, ("first", "second"), strict=True):
        assert one.code == 2 and "Traceback" not in one.said
        reason = f"process 2 of 2 does not see the first process's {tmp_path / name}"
        sentence = f"{reason}; give --out a folder that all nodes share"
        assert f"ovseg: {sentence}\n" in one.said
    assert files(tmp_path / "first") == files(world.root / "pairs") and not files(tmp_path / "second")


def test_two_nodes_test_as_one_does(world: World, tmp_path: Path) -> None:
    words = [*world.test, *place(tmp_path / "test")]
    ended = nodes.run(tmp_path, words, words)
    assert [one.code for one in ended] == [0, 0], ended[0].said
    rows = [
        [row for file in run.rglob("metrics.csv") for row in csv.DictReader(file.open())]
        for run in (tmp_path / "test", world.root / "test")
    ]
    assert rows[0] == rows[1] and float(rows[0][0]["test/miou_union"]) > 0


class TerminateOne(L.Callback):
    """The second node is told to end in the middle of the second step, which the first only hears from it."""

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_two_nodes_train_as_one_does_and_stop_at_the_same_step(world: World, tmp_path: Path) -> None:
    words = [*world.fit, *place(tmp_path / "fit")]
    ended = nodes.run(tmp_path, words, words)
    assert [one.code for one in ended] == [0, 0], ended[0].said
    torch.testing.assert_close(prompts(tmp_path / "fit"), prompts(world.root / "fit"), rtol=1e-3, atol=1e-5)

    words = [*world.fit, *place(tmp_path / "stopped"), "--ckpt_path", "last"]
    one = ["--trainer.callbacks", "tests.test_nodes.TerminateOne"]
    ended = nodes.run(tmp_path, [*words, *one], [*words, *one])
    assert [node.code for node in ended] == [143, 143], ended[0].said + ended[1].said
    assert "ovseg: stopped by SIGTERM; to resume: " in ended[0].said and "ovseg: stopped" not in ended[1].said
    assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["global_step"] == 2
    ended = nodes.run(tmp_path, words, words)
    assert [node.code for node in ended] == [0, 0], ended[0].said
    torch.testing.assert_close(prompts(tmp_path / "stopped"), prompts(tmp_path / "fit"), rtol=1e-3, atol=1e-5)


def test_going_on_from_what_one_node_does_not_see_is_refused(world: World, tmp_path: Path) -> None:
    words = [[*world.fit, "--ckpt_path", "last", *place(folder)] for folder in (world.root / "fit", tmp_path / "fit")]
    for one in nodes.run(tmp_path, *words):
        assert one.code == 2 and "Traceback" not in one.said
        assert "ovseg: not every process sees the checkpoint to resume from (" in one.said


def test_waiting_is_said_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = PairStore(tmp_path / "pairs", {})
    store.begin(2)
    store.write(0, [], ShardLog(1, []))
    with pytest.raises(InputError, match="and none was written for 1 s: another process has ended") as refused:
        wait_for_others(store, patience=1)
    assert str(refused.value).startswith(f"1 shards are missing in {tmp_path / 'pairs'}, ")
    assert capsys.readouterr().err == "this process has finished; waiting for 1 shards of other processes\n"
    store.write(1, [], ShardLog(1, []))
    wait_for_others(store, patience=0)
