"""Tests of packaged, typed and written vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovseg.data.vocabulary import builtin_vocabularies, read_dataset_ids, read_vocabulary
from ovseg.structures import InputError, Vocabulary


@pytest.mark.parametrize(
    ("name", "classes", "seen"),
    [
        ("ade20k_150", 150, 67),
        ("ade20k_847", 847, 115),
        ("pascal_context_459", 459, 94),
        ("pascal_context_59", 59, 51),
        ("pascal_voc_20", 20, 20),
    ],
)
def test_benchmarks_have_the_published_counts(name: str, classes: int, seen: int) -> None:
    vocabulary = read_vocabulary(name)
    assert len(vocabulary) == classes
    assert vocabulary.seen is not None
    assert sum(vocabulary.seen) == seen


@pytest.mark.parametrize("name", builtin_vocabularies())
def test_every_packaged_list_can_be_read(name: str) -> None:
    vocabulary = read_vocabulary(name, synonyms=True)
    assert vocabulary.names == read_vocabulary(name).names
    ids = read_dataset_ids(name)
    assert ids is None or len(set(ids)) == len(vocabulary)


def test_coco_stuff_ids_have_the_known_gaps() -> None:
    ids = read_dataset_ids("coco_stuff_171")
    assert ids is not None
    # 11 ids of COCO's object list were never annotated
    assert sorted(set(range(1, 183)) - set(ids)) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]
    assert read_dataset_ids("ade20k_150") is None
    assert read_dataset_ids("cat, sofa") is None


def test_names_are_verbatim_and_synonyms_optional() -> None:
    assert "window " in read_vocabulary("ade20k_150").names  # as the release passes it to CLIP
    without, with_synonyms = read_vocabulary("pascal_voc_20"), read_vocabulary("pascal_voc_20", synonyms=True)
    assert without.synonyms[0] == ("aeroplane",)
    assert with_synonyms.synonyms[0] == ("aeroplane", "airplane", "aeroplanes", "airplanes")


def test_names_can_be_typed_with_commas() -> None:
    assert read_vocabulary("cat, sofa,potted plant ").names == ("cat", "sofa", "potted plant")
    assert read_vocabulary("cat").names == ("cat",)
    long = ", ".join(f"thing {number}" for number in range(300))  # longer than a file name can be
    assert len(read_vocabulary(long)) == 300


def test_text_files_have_a_class_per_line_with_synonyms(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("road, route\nsofa; couch ;settee\n", encoding="utf-8-sig")
    assert read_vocabulary(str(file)).names == ("road, route", "sofa")
    assert read_vocabulary(str(file)).synonyms == (("road, route",), ("sofa", "couch", "settee"))


def test_json_files_have_synonyms_seen_flags_and_ids(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    lists = {
        "classes": ["a", "b"],
        "seen": [1, 0],
        "dataset_ids": [3, 7],
        "other_ids": [1, 2],
        "synonyms": [["a"], ["c"]],
    }
    file.write_text(json.dumps(lists))
    assert read_vocabulary(str(file)).seen == (True, False)
    assert read_vocabulary(str(file)).synonyms == (("a",), ("c",))
    assert (read_dataset_ids(str(file)), read_dataset_ids(str(file), "other_ids")) == ([3, 7], [1, 2])


def test_vocabularies_of_any_language_and_size_are_read(tmp_path: Path) -> None:
    names = ("猫", "диван", "شجرة", "σκύλος", "🌳", "café au lait")
    (tmp_path / "words.txt").write_text("\n".join(names), encoding="utf-8")
    assert read_vocabulary(str(tmp_path / "words.txt")).names == names
    assert read_vocabulary(", ".join(names)).names == names
    (tmp_path / "many.txt").write_text("\n".join(f"word {number}" for number in range(10_000)))
    many = read_vocabulary(str(tmp_path / "many.txt"))
    assert (len(many), many.ignore_index) == (10_000, 65535)
    assert (len(read_vocabulary("cat")), read_vocabulary("cat").ignore_index) == (1, 255)


def test_the_ignore_index_is_never_a_class() -> None:
    wide = [name for name in builtin_vocabularies() if read_vocabulary(name).ignore_index == 65535]
    assert wide == ["ade20k_847", "pascal_context_459"]
    assert Vocabulary(tuple(f"{n}" for n in range(255))).ignore_index == 255
    assert Vocabulary(tuple(f"{n}" for n in range(256))).ignore_index == 65535


def test_the_background_of_voc_is_one_class_with_many_names() -> None:
    voc, context = (read_vocabulary(name, synonyms=True) for name in ("pascal_voc_20", "pascal_context_59"))
    as_rest, as_class = (read_vocabulary(name, synonyms=True) for name in ("pascal_voc_20b", "pascal_voc_21"))
    assert as_rest.names == voc.names + context.names[20:]
    assert as_rest.synonyms == voc.synonyms + context.synonyms[20:]
    assert as_rest.scored_names == (*voc.names, "background")
    assert as_class.names == as_class.scored_names == ("background", *voc.names)
    assert as_class.synonyms == (("background",), *voc.synonyms)
    for wrong in (0, 2):
        with pytest.raises(InputError, match=f"background_from is {wrong}, which leaves no classes"):
            Vocabulary(("a", "b"), background_from=wrong)


def test_a_phrase_in_two_classes_logs_a_warning_that_names_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "words.txt"
    file.write_text("seat; Chair\nsofa; sofa; couch\nchair; stool\nbench\n")
    read_vocabulary(str(file))
    assert caplog.messages == [f"vocabulary {file} has the same phrase in two classes: 'chair' in 'seat' and 'chair'"]
    caplog.clear()
    read_vocabulary("ade20k_847")
    assert caplog.messages == []
    read_vocabulary("ade20k_847", synonyms=True)
    (warning,) = caplog.messages
    assert "'beds' in 'bed' and 'beds'; " in warning and warning.endswith(" and 40 more")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "empty"),
        (" , ", "empty"),
        ("cat,,dog", "empty name"),
        ("cat, dog, cat", "'cat' more than once"),
        ("ade20k", "choose one of ade20k_150"),
        ("ade20k_151", "choose one of ade20k_150"),
        ("lists/words", "there is no vocabulary"),
        ("words.json", "words.json does not exist"),
        ("words.txt", "words.txt does not exist"),
    ],
)
def test_wrong_vocabularies_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_vocabulary(spec)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "cat\n\ndog\n", "line 2"),
        ("a.txt", "cat\ndog; \n", "line 2"),
        ("a.txt", "", "empty"),
        ("a.txt", "cat\ncat\n", "more than once"),
        ("a.json", "{", "not JSON"),
        ("a.json", '["cat"]', "no list of names"),
        ("a.json", '{"classes": []}', "empty"),
        ("a.json", '{"classes": ["a", "a"]}', "more than once"),
        ("a.json", '{"classes": ["a", "b"], "seen": [1]}', "seen flags"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", '{"classes": [1, 2]}', "no list of names"),
        ("a.json", '{"classes": ["a"], "synonyms": 3}', "'synonyms' is not a list"),
        ("a.json", '{"classes": ["a"], "synonyms": ["b"]}', "'synonyms' is not a list"),
        ("a.json", '{"classes": ["a"], "synonyms": [[3]]}', "'synonyms' is not a list"),
        ("a.json", '{"classes": ["a"], "seen": 3}', "'seen' is not a list"),
        ("a.json", '{"classes": ["a"], "dataset_ids": 3}', "'dataset_ids' is not a list"),
        ("a.json", '{"classes": ["a", "b"], "background_from": "1"}', "'background_from' is not an integer"),
    ],
)
def test_damaged_files_are_refused_by_name(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_vocabulary(str(tmp_path / name))
    assert name in str(caught.value)


def test_dataset_ids_must_be_distinct(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"classes": ["a", "b"], "dataset_ids": [1, 1]}')
    with pytest.raises(InputError, match="needs one distinct id per class"):
        read_dataset_ids(str(tmp_path / "a.json"))
