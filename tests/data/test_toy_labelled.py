"""Tests of labelled toy scenes: one mask per region, reproducibly."""

from __future__ import annotations

import torch

from ovseg.data.toy import TRAINING_CLASSES, make_scene
from ovseg.data.toy.folder import TRAINING_LABELS
from ovseg.data.toy.labelled import ToyScenesDataModule


def scenes(num_workers: int = 0, seed: int = 0) -> ToyScenesDataModule:
    return ToyScenesDataModule(12, total_batch_size=4, num_workers=num_workers, seed=seed)


def test_targets_encode_label_and_region() -> None:
    data = scenes()
    for index, sample in enumerate(data.dataset[key] for key in range(12)):
        scene = make_scene(0, index, split="proposals")
        pixels, target = sample
        assert torch.equal((255 * pixels).round().byte(), torch.from_numpy(scene.image).permute(2, 0, 1))
        labels_and_areas = {(int(value) % 256, int((target == value).sum())) for value in target.unique()}
        assert labels_and_areas == {
            (int(TRAINING_LABELS[region.noun]), int(region.mask.sum())) for region in scene.regions
        }
    assert any(
        len({region.noun for region in make_scene(0, index, split="proposals").regions} & {10, 11, 12, 13, 14, 15}) > 1
        for index in range(60)
    )  # several unseen things can occur in one scene, as in benchmarks


def test_batches_are_reproducible_and_do_not_depend_on_workers() -> None:
    in_process, in_workers = (list(scenes(workers).train_dataloader()) for workers in (0, 2))
    assert len(in_process) == 3
    for first, second in zip(in_process, in_workers, strict=True):
        assert first.images.shape == (4, 3, 128, 128)
        assert first.labels.max() < len(TRAINING_CLASSES)
        assert first.regions.max() < 7
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(scenes(seed=1).dataset[0][0], scenes().dataset[0][0])


def test_every_epoch_has_new_scenes() -> None:
    data = scenes().dataset
    assert len({data[key][0].numpy().tobytes() for key in range(36)}) == 36
