"""The four stages on the command line, on a handful of scenes and networks with random weights."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from PIL import Image
from torch import Tensor

from ovseg.data import read_pairs
from ovseg.models import OpenVocabSegmenter
from tests import tiny
from tests.stages import CONF, ovseg, refusal

TRAIN, VAL = 14, 3  # scenes
WORDS = ["grass", "sky", "star", "a red car"]
QUIET = ["--trainer.enable_progress_bar", "false", "--data.num_workers", "0"]
UNLOGGED = [*QUIET, "--trainer.logger", "false"]


class Runs(NamedTuple):
    """What the stages left."""

    root: Path
    world: Path
    clip: str  # random weights, the same in every run of one seed

    def fit_proposals(self, out: str, *words: object) -> Path:
        """Three steps of four crops an epoch; the folder of the run."""
        network = [
            "--model.proposer.init_args.model",
            json.dumps(tiny.mask2former()),
            "--model.proposer.text_dim",
            tiny.DIM,
        ]
        files = ["--data", "ovseg.data.COCOStuffDataModule", "--data.vocabulary", "toy_train"]
        files += ["--data.root", self.world]
        views = ["--data.transform", json.dumps({"crop_size": 64, "short_sides": [64, 80], "long_side": 96})]
        data = ["--data.val_split", 2, "--data.total_batch_size", 4, "--data.val_short_side", 64]
        length = ["--trainer.max_steps", 5, "--trainer.val_check_interval", 3, "--trainer.log_every_n_steps", 1]
        length += ["--trainer.check_val_every_n_epoch", "null"]
        place = ["--trainer.default_root_dir", self.root / out, "--model.clip.model", self.clip]
        flags = [*files, *network, *views, *data, *length, *place, *(words or QUIET)]
        ovseg("fit", "--config", CONF / "toy" / "proposals.yaml", *flags)
        return self.root / out

    def mine(self, out: str, *words: object) -> Path:
        files = ["--data.images", self.world / "train2017", "--data.short_side", 64]
        captions = ["--data.captions", self.world / "annotations" / "captions_train2017.json", "--out", self.root / out]
        network = ["--model.clip.model", self.clip]
        ovseg("mine", "--config", CONF / "toy" / "mine.yaml", *network, *files, *captions, *QUIET, *words)
        return self.root / out

    def fit_adapter(self, out: str, *words: object) -> Path:
        data = ["--data.pairs", self.root / "pairs", "--data.images", self.world / "train2017"]
        data += ["--data.val.images", self.world / "val2017"]
        data += ["--data.val.labels", self.world / "stuffthingmaps" / "val2017", "--data.val.resize", "[64, 256]"]
        place = ["--trainer.default_root_dir", self.root / out, "--model.clip.model", self.clip]
        flags = ["--model.clip.prompt_depth", 2, "--data.total_batch_size", 4, "--trainer.max_epochs", 2, *place, *data]
        ovseg("fit", "--config", CONF / "toy" / "adapter.yaml", *flags, *(words or QUIET))
        return self.root / out

    def test(self, out: str, *words: object) -> dict[str, float]:
        """The metrics that the CSV log has."""
        data = ["--data.images", self.world / "val2017", "--data.labels", self.world / "stuffthingmaps" / "val2017"]
        place = ["--trainer.default_root_dir", self.root / out, "--model.segmenter", self.root / "segmenter"]
        ovseg("test", "--config", CONF / "toy" / "test.yaml", *data, *place, *QUIET, *words)
        return logged(self.root / out)[-1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every stage once, each handing its file to the next."""
    root = tmp_path_factory.mktemp("runs")
    ovseg("toy", "--out", root / "world", "--scenes", TRAIN, "--val_scenes", VAL)
    runs = Runs(root, root / "world", tiny.clip_folder(root / "clip"))
    runs.fit_proposals("proposals")
    masks = runs.world / "annotations" / "regions_train2017.json"
    runs.mine("pairs", "--model.proposer", "null", "--data.masks", masks)
    runs.fit_adapter("adapter")
    networks = ["--proposer", root / "proposals" / "last.ckpt", "--clip", root / "adapter" / "last.ckpt"]
    ovseg("bundle", *networks, "--out", root / "segmenter", "--short_side", 64)
    scene = root / "world" / "val2017" / "000000000001.jpg"
    words = ["--vocabulary", ", ".join(WORDS), "--out", root / "out", "--trainer.enable_progress_bar", "false"]
    ovseg("segment", "--model", root / "segmenter", "--images", scene, *words)
    return runs


class Interrupt(Callback):
    """The user presses Ctrl-C when a step is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class Press(Interrupt):
    """The user presses it in the middle of the next step."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None: ...

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGINT)


class Terminate(Press):
    """A scheduler ends the job there: it sends SIGTERM to all its processes."""

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step - 1:
            terminate()


class TerminateElsewhere(Callback):
    """The same after the first batch of anything but training."""

    def _terminate(self, trainer: L.Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            terminate()

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _terminate


def terminate() -> None:
    """To all processes of the job, and from another one, since a worker obeys its parent."""
    processes = [*multiprocessing.active_children(), multiprocessing.current_process()]
    subprocess.run(["kill", "-TERM", *(str(process.pid) for process in processes)], check=True)


class Requeue(Callback):
    """SLURM announces in the second step that the time is up, and ends the job in the fourth."""

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step in (1, 3):
            os.kill(os.getpid(), {1: signal.SIGUSR1, 3: signal.SIGTERM}[trainer.global_step])


class Full(Interrupt):
    """After a step there is no room for a checkpoint any more."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class Fault(Press):
    """Something breaks there."""

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("a fault")


def logged(run: Path) -> list[dict[str, float]]:
    """The rows of the newest CSV log, without the empty cells."""
    with max(run.rglob("metrics.csv")).open() as lines:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(lines)]


def weights(run: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    return state


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


# What each stage leaves on disk


def test_fit_leaves_its_config_checkpoint_and_logs(runs: Runs) -> None:
    run = runs.root / "proposals"
    assert yaml.safe_load((run / "fit.yaml").read_text())["trainer"]["max_steps"] == 5
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 5
    best = torch.load(run / "best.ckpt", weights_only=True)
    assert best["global_step"] == 3  # of the only validation
    assert [state["monitor"] for name, state in best["callbacks"].items() if "Best" in name] == ["val/mean_best_iou"]
    assert "hyper_parameters" not in checkpoint  # they would override flags
    assert not any("clip" in name or "text_features" in name for name in checkpoint["state_dict"])
    assert list((run / "tensorboard").rglob("events.out.tfevents.*"))
    rows = logged(run)
    assert sum("train/loss" in row for row in rows) == 5
    assert [name for row in rows for name in row if name.startswith("lr-")]
    [scores] = [row for row in rows if "val/mean_best_iou" in row]
    for name in ("val/mean_best_iou", "val/miou_union", "val/miou_target"):
        assert 0 <= scores[name] <= 1


def test_mined_pairs_point_into_their_images(runs: Runs) -> None:
    pairs = read_pairs(runs.root / "pairs")
    assert len(pairs) >= 16
    assert (runs.root / "pairs" / "mine.yaml").is_file()
    captions = json.loads((runs.world / "annotations" / "captions_train2017.json").read_text())
    said = {caption["id"]: caption["caption"].lower() for caption in captions["annotations"]}
    for pair in pairs:
        with Image.open(runs.world / "train2017" / pair.file_name) as image:
            assert (image.height, image.width) == pair.size
        assert pair.noun.split()[-1][:3] in said[pair.caption_id]
        assert -1 <= pair.similarity <= 1 and pair.margin >= 0


def test_mining_with_a_network(runs: Runs) -> None:
    out = runs.mine("mined", "--model.proposer", runs.root / "proposals" / "last.ckpt", "--model.mask_threshold", 0.1)
    pairs = read_pairs(out)
    assert len(pairs) and all(0.1 < pair.proposal_score <= 1 for pair in pairs)


def test_adapter_moves_the_prompts_alone(runs: Runs) -> None:
    before = torch.load(
        runs.fit_adapter("untrained", "--model.prompt_lr", 0, *UNLOGGED) / "last.ckpt", weights_only=True
    )
    after = weights(runs.root / "adapter")
    moved = [name for name, value in before["state_dict"].items() if not torch.equal(value, after[name])]
    assert moved == ["clip.clip.visual.prompt.mask_embedding"]


def test_adapter_names_true_segments_after_each_epoch(runs: Runs) -> None:
    """As a test of the CLIP that it leaves does."""
    rows = [row for row in logged(runs.root / "adapter") if "val/mask_accuracy" in row]
    assert len(rows) == 2
    tested = runs.test("tested-adapter")
    for name in ("mask_accuracy", "mask_accuracy_seen", "mask_accuracy_unseen"):
        assert rows[-1][f"val/{name}"] == pytest.approx(tested[f"test/{name}"], nan_ok=True)
    assert (runs.root / "adapter" / "best.ckpt").is_file()


def test_bundle_has_the_weights_that_were_trained(runs: Runs) -> None:
    segmenter = OpenVocabSegmenter.from_pretrained(runs.root / "segmenter")
    trained = weights(runs.root / "proposals")
    assert same(segmenter.proposer.state_dict(), {name.removeprefix("proposer."): p for name, p in trained.items()})
    prompt = segmenter.clip.visual.prompt
    assert prompt is not None
    assert torch.equal(prompt.mask_embedding, weights(runs.root / "adapter")["clip.clip.visual.prompt.mask_embedding"])
    assert segmenter.resize == (64, 256)


@pytest.fixture(scope="module")
def varied(runs: Runs) -> list[object]:
    """Flags of a segmenter that finds more than one class, which two steps of training do not give."""
    tiny.segmenter(runs.root / "clip").save_pretrained(runs.root / "varied")
    return ["--model.segmenter", runs.root / "varied"]


def test_test_gives_the_same_numbers_twice(runs: Runs, varied: list[object]) -> None:
    runs.test("bundled")
    first, second = runs.test("test", *varied), runs.test("again", *varied)
    assert first == second
    names = {"test/miou_union", "test/miou_target", "test/miou_union_seen", "test/miou_union_unseen", "test/pacc"}
    assert names <= first.keys()
    assert all(0 <= first[name] <= 1 for name in names)
    assert (runs.root / "test" / "test.yaml").is_file()


def test_classifier_and_weight_change_what_is_tested(runs: Runs, varied: list[object]) -> None:
    alone = runs.test("alone", *varied, "--model.classifier", "proposals")
    assert alone == runs.test("none", *varied, "--model.ensemble_weight", 0)
    assert alone != runs.test("clip", *varied, "--model.classifier", "clip")


def test_segment_writes_labels_and_an_overlay(runs: Runs) -> None:
    out = runs.root / "out"
    assert {file.name for file in out.iterdir()} == {
        "000000000001_labels.png",
        "000000000001_overlay.png",
        "000000000001_segments.json",
        "segment.yaml",
    }
    scene = runs.world / "val2017" / "000000000001.jpg"
    with Image.open(scene) as image, Image.open(out / "000000000001_labels.png") as labels:
        assert labels.size == image.size and labels.mode == "P"
        found = np.asarray(labels)
    expected = OpenVocabSegmenter.from_pretrained(runs.root / "segmenter").segment(scene, WORDS)
    assert np.array_equal(found, expected.numpy())
    with Image.open(out / "000000000001_overlay.png") as overlay:
        assert overlay.height >= 512 and overlay.width > overlay.height


# Running again, and going on


def test_saved_config_runs_the_same_run(runs: Runs) -> None:
    run = runs.root / "proposals"
    again = runs.root / "proposals-again"
    last = ["--ckpt_path", "last"]  # which is not there yet
    ovseg("fit", "--config", run / "fit.yaml", "--trainer.default_root_dir", again, *last)
    assert same(weights(run), weights(again))


def test_seed_decides_the_weights(runs: Runs) -> None:
    other = runs.fit_proposals("other-seed", "--seed_everything", 1, *UNLOGGED)
    assert not same(weights(runs.root / "proposals"), weights(other))


def test_validate_scores_a_checkpoint_as_fit_did(runs: Runs) -> None:
    run, out = runs.root / "proposals", runs.root / "validated"
    config = yaml.safe_load((run / "fit.yaml").read_text())
    parts = [word for part in ("model", "data") for word in (f"--{part}", json.dumps(config[part]))]
    place = ["--trainer.default_root_dir", out, "--trainer.enable_progress_bar", "false"]
    ovseg("validate", *parts, *place, "--ckpt_path", run / "last.ckpt")
    assert logged(out)[0].keys() >= {"val/mean_best_iou", "val/miou_union", "val/miou_target"}
    assert (out / "validate.yaml").is_file() and not (out / "last.ckpt").exists()


def test_what_cannot_be_done_is_refused_before_it_begins(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runs.root / "adapter" / "fit.yaml"
    parts = {part: json.dumps(value) for part, value in yaml.safe_load(config.read_text()).items()}
    words = ["--model", parts["model"], "--data", parts["data"], "--trainer.default_root_dir", runs.root / "refused"]
    said = refusal(capsys, "validate", *words, "--data.val", "null", *UNLOGGED)
    assert said.startswith("there is nothing to validate on; give --data.val a benchmark")
    monkeypatch.setattr(_SubprocessScriptLauncher, "_call_children_scripts", lambda self: pytest.fail("launched"))
    two = ["--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    said = refusal(capsys, "fit", *words, *two, "--data.total_batch_size", 7, *UNLOGGED)
    assert said == ("a total_batch_size of 7 cannot be divided among 2 processes; give --data.total_batch_size 6")


STOPS = [("Interrupt", 2, 130), ("Press", 2, 130), ("Press", 3, 130), ("Terminate", 2, 143), ("Terminate", 3, 143)]


@pytest.mark.parametrize(("how", "step", "code"), STOPS)  # in an epoch, and at its end
def test_proposals_go_on_exactly_after_a_signal(
    runs: Runs, how: str, step: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"stopped-{how}-{step}"
    stop = ["--trainer.callbacks", f"tests.test_stages.{how}", "--trainer.callbacks.step", step]
    workers = ["--data.num_workers", 2 if how == "Terminate" else 0]
    assert stopped(runs.fit_proposals, out, *UNLOGGED, *workers, *stop) == code
    assert torch.load(runs.root / out / "last.ckpt", weights_only=True)["global_step"] == step
    name = "SIGTERM" if code == 143 else "SIGINT"
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"ovseg: stopped by {name}; to resume: ovseg fit --config ") and last.endswith(
        f" --trainer.callbacks.step {step} --ckpt_path last"
    )
    run = runs.fit_proposals(out, *UNLOGGED, "--ckpt_path", "last")
    assert same(weights(runs.root / "proposals"), weights(run))


def stopped(run: Callable[..., object], *words: object) -> object:
    """The exit code of what is stopped; the signals do what they did before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    return end.value.code


ELSEWHERE = ["--trainer.callbacks", "tests.test_stages.TerminateElsewhere"]


def test_proposals_go_on_exactly_after_a_signal_in_a_validation(runs: Runs) -> None:
    assert stopped(runs.fit_proposals, "ended", *UNLOGGED, *ELSEWHERE) == 143
    assert torch.load(runs.root / "ended" / "last.ckpt", weights_only=True)["global_step"] == 3
    run = runs.fit_proposals("ended", *UNLOGGED, "--ckpt_path", "last")
    assert same(weights(runs.root / "proposals"), weights(run))


def test_what_ends_in_mine_test_and_segment_is_kept(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    masks = ["--model.proposer", "null", "--data.masks", runs.world / "annotations" / "regions_train2017.json"]
    words = [*masks, "--shard_images", 4, "--data.batch_size", 4, "--data.num_workers", 1]
    assert stopped(runs.mine, "ended-pairs", *words, *ELSEWHERE) == 143
    assert "ovseg: stopped by SIGTERM; it resumes when you rerun the same command\n" in capsys.readouterr().err
    out = runs.root / "ended-pairs"
    assert len(list(out.glob("pairs-*.parquet"))) <= 1 and not list(out.glob(".*"))
    runs.mine("ended-pairs", *words)
    keys = [
        [(pair.image_id, pair.noun, pair.counts) for pair in read_pairs(runs.root / name)] for name in ("pairs", out)
    ]
    assert keys[0] == keys[1]

    assert stopped(runs.test, "ended-test", *ELSEWHERE) == 143
    assert "stopped by SIGTERM; nothing was kept; rerun the same command to start over\n" in capsys.readouterr().err
    assert not list((runs.root / "ended-test").rglob("report*"))

    place = ["--images", runs.world / "val2017", "--vocabulary", ", ".join(WORDS), "--out", runs.root / "ended-out"]
    words = ["segment", "--model", runs.root / "segmenter", *place, "--trainer.enable_progress_bar", "false"]
    assert stopped(ovseg, *words, *ELSEWHERE) == 143
    assert "it resumes when you rerun the same command\n" in capsys.readouterr().err
    finished = len(list((runs.root / "ended-out").glob("*_segments.json")))
    assert finished <= 1
    ovseg(*words)
    skipped = ", 1 already complete" if finished else ""
    assert f"{VAL - finished} images segmented into {runs.root / 'ended-out'}{skipped}" in capsys.readouterr().out


def test_a_job_that_slurm_requeues_goes_on_from_the_newest_state(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "scontrol"
    script.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/calls\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    slurm = {"JOB_ID": "7", "JOB_NAME": "fit", "NTASKS": "1", "NTASKS_PER_NODE": "1", "NNODES": "1"}
    for name, value in {**slurm, "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    job = [*UNLOGGED, "--trainer.callbacks", "tests.test_stages.Requeue"]
    folder = runs.root / "requeued"

    def steps() -> dict[str, int]:
        return {file.stem: torch.load(file, weights_only=True)["global_step"] for file in folder.glob("[hl]*.ckpt")}

    assert stopped(runs.fit_proposals, folder.name, *job) == 143
    assert (tmp_path / "calls").read_text() == "requeue 7\n"
    assert steps() == {"hpc_ckpt_1": 2, "last": 4}  # the end of each step
    (folder / "last.ckpt").unlink()  # a node that is lost leaves what it has saved in time
    assert stopped(runs.fit_proposals, folder.name, *job) == 143
    assert steps() == {"hpc_ckpt_1": 2, "last": 4}
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert same(weights(runs.root / "proposals"), weights(runs.fit_proposals(folder.name, *job)))


def test_adapter_repeats_the_step_that_failed(runs: Runs) -> None:
    fault = ["--trainer.callbacks", "tests.test_stages.Fault", "--trainer.callbacks.step", 3]
    with pytest.raises(RuntimeError, match="a fault"):
        runs.fit_adapter("adapter-fault", *UNLOGGED, *fault)
    last = runs.root / "adapter-fault" / "last.ckpt"
    run = runs.fit_adapter("adapter-fault", *UNLOGGED, "--ckpt_path", last)
    for name, value in weights(runs.root / "adapter").items():
        torch.testing.assert_close(weights(run)[name], value, rtol=1e-3, atol=1e-5)


def test_adapter_goes_on_exactly_after_an_interrupt(runs: Runs) -> None:
    stop = ["--trainer.callbacks", "tests.test_stages.Interrupt", "--trainer.callbacks.step", 3]
    assert stopped(runs.fit_adapter, "adapter-stopped", *UNLOGGED, *stop) == 130
    run = runs.fit_adapter("adapter-stopped", *UNLOGGED, "--ckpt_path", "last")
    assert "ckpt_path: null" in (run / "fit.yaml").read_text()  # so that the file can be run again, elsewhere
    first, second = weights(runs.root / "adapter"), weights(run)
    for name, value in first.items():  # a text's features depend in the last bit on what was encoded with it
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5)


def test_a_finished_run_can_be_made_longer(runs: Runs) -> None:
    short = runs.fit_proposals("short", *UNLOGGED, "--trainer.max_steps", 4)
    runs.fit_proposals("short", *UNLOGGED, "--trainer.max_steps", 7, "--ckpt_path", short / "last.ckpt")
    checkpoint = torch.load(short / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 7
    assert checkpoint["COCOStuffDataModule"]["place"] == (2, 1)  # seven steps are two epochs and one step

    short = runs.fit_adapter("short-adapter", *UNLOGGED, "--trainer.max_epochs", 1)
    runs.fit_adapter("short-adapter", *UNLOGGED, "--ckpt_path", short / "last.ckpt")
    checkpoint = torch.load(short / "last.ckpt", weights_only=True)
    whole = torch.load(runs.root / "adapter" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == whole["global_step"]
    assert checkpoint["RegionTextDataModule"] == whole["RegionTextDataModule"]


def test_a_resume_that_fails_leaves_the_checkpoint_as_it_was(runs: Runs) -> None:
    last = runs.root / "adapter-copied" / "last.ckpt"
    last.parent.mkdir()
    shutil.copy(runs.root / "adapter" / "last.ckpt", last)
    before = last.read_bytes()
    with pytest.raises((SystemExit, MisconfigurationException)):
        runs.fit_adapter("adapter-copied", *UNLOGGED, "--ckpt_path", last, "--trainer.max_epochs", 1)
    assert last.read_bytes() == before


def test_a_full_disk_ends_the_run_in_a_sentence(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    full = ["--trainer.callbacks", "tests.test_stages.Full", "--trainer.callbacks.step", 4]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(SystemExit) as stopped:
            runs.fit_proposals("full", *UNLOGGED, *full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    last = runs.root / "full" / "last.ckpt"
    assert stopped.value.code == 2
    assert (
        f"ovseg: {last} cannot be written (File too large), and the previous checkpoint is unchanged"
        in capsys.readouterr().err
    )
    assert torch.load(last, weights_only=True)["global_step"] == 3  # of the validation
    assert not list(last.parent.glob(".*"))
    assert same(weights(runs.fit_proposals("full", *UNLOGGED, "--ckpt_path", last)), weights(runs.root / "proposals"))


def test_a_checkpoint_of_one_s_own_is_kept_beside_the_last(runs: Runs) -> None:
    own = ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.monitor", "val/miou_union"]
    run = runs.fit_proposals("best", *UNLOGGED, *own, "--trainer.callbacks.dirpath", runs.root / "best" / "own")
    assert same(weights(run), weights(runs.root / "proposals"))
    assert len(list((run / "own").glob("*.ckpt"))) == 1
    run = runs.fit_proposals("none", *UNLOGGED, "--trainer.enable_checkpointing", "false")
    assert not list(run.rglob("*.ckpt"))


def test_a_report_is_not_replaced_by_another_test_s(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.test("report")
    runs.test("report")  # the same again
    before = (runs.root / "report" / "report.json").read_text()
    with pytest.raises(SystemExit):
        runs.test("report", "--model.ensemble_weight", 0.5)
    sentence = capsys.readouterr().err
    assert f"{runs.root / 'report' / 'report.json'} was written by `ovseg test --config " in sentence
    assert f"choose another --trainer.default_root_dir, or delete {runs.root / 'report'}" in sentence
    assert (runs.root / "report" / "report.json").read_text() == before


def test_training_over_another_run_is_refused(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.root / "proposals"
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    sentence = refusal(capsys, "fit", "--config", run / "fit.yaml")
    assert f"{run} already holds a run" in sentence
    assert "add --ckpt_path last to resume it, or choose another --trainer.default_root_dir" in sentence
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_a_mined_store_is_not_written_over(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    store = runs.root / "pairs"
    before = {file: file.read_bytes() for file in store.iterdir()}
    sentence = refusal(capsys, "mine", "--config", store / "mine.yaml", "--out", store, "--model.templates", "vild")
    assert f"{store} already contains pairs with different settings: templates" in sentence
    assert {file: file.read_bytes() for file in store.iterdir()} == before
