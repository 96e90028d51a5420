"""Questions that cannot be asked are refused with all of them named, before anything runs."""

import json

import datasets
import pytest
from PIL import Image

from ift_components.data.prepared import QUESTION_FEATURES
from ift_components.errors import DataError
from ift_components.evaluation.free_file import free_items
from ift_components.evaluation.items import control_items, question_items, report_items


@pytest.fixture
def broken(prepared, tmp_path):
    """A function that copies a prepared folder with its test questions changed row by row."""

    def make(change):
        (tmp_path / "questions").mkdir()
        (tmp_path / "manifest.json").write_text((prepared / "manifest.json").read_text())
        data = datasets.Dataset.from_parquet(str(prepared / "questions" / "test.parquet"))
        rows = [
            change(number, row) for number, row in enumerate(data.cast_column("image", datasets.Image(decode=False)))
        ]
        datasets.Dataset.from_list(rows, features=QUESTION_FEATURES).to_parquet(tmp_path / "questions" / "test.parquet")
        return tmp_path

    return make


def load(folder, **options):
    return question_items(folder, "test", "shapes", **options)


def test_questions(prepared):
    items = load(prepared, limit=5)
    assert [item.key for item in items] == [("choice", "shapes", item.id) for item in items]
    assert len(items) == 5
    assert items[0].prompt.startswith("What is the shape?\nA. ")
    assert items[0].picture().size[0] > 0
    assert items[0].image_id == items[3].image_id != items[4].image_id
    reports = report_items(prepared, "test", "shapes", "Describe.", max_new_tokens=9, limit=2)
    assert [(r.task, r.prompt, r.max_new_tokens) for r in reports] == [("report", "Describe.", 9)] * 2
    assert "," in reports[0].reference


def test_questions_without_images(broken):
    folder = broken(lambda n, row: {**row, "image": None if n in (3, 7) else row["image"]})
    with pytest.raises(DataError, match=r"2 questions have no image: '.*'; '.*'$"):
        load(folder, limit=1)  # also beyond the limit


def test_images_that_are_gone(broken, prepared, tmp_path):
    gone = tmp_path / "gone.png"
    load(prepared)[0].picture().save(gone)
    folder = broken(lambda n, row: {**row, "image": {"bytes": None, "path": str(gone)} if n == 2 else row["image"]})
    assert len(load(folder)) == 32
    gone.unlink()
    with pytest.raises(DataError, match=r"1 questions have no image: '.*' \(.*gone.png is missing\)"):
        load(folder)


def test_answers_out_of_range_and_other_mistakes(broken):
    def change(number, row):
        wrong = {0: {"answer": 4}, 1: {"answer": -1}, 2: {"answer": None}, 5: {"id": "twice"}, 6: {"id": "twice"}}
        return (
            {**row, **wrong.get(number, {})} if number != 4 else {**row, "options": list("abcdefghijklmnopqrstuvwxyzä")}
        )

    with pytest.raises(DataError) as error:
        load(broken(change))
    message = str(error.value)
    assert "5 questions are wrong: " in message
    assert "has answer 4 of" in message
    assert "has answer -1 of" in message
    assert "has answer None of" in message
    assert "has 27 options, more than there are letters" in message
    assert "'twice' occurs twice" in message


def test_ten_bad_rows_are_named_and_all_are_counted(broken):
    with pytest.raises(DataError, match="32 questions are wrong") as error:
        load(broken(lambda n, row: {**row, "answer": 99}))
    assert str(error.value).count("has answer 99") == 10
    assert str(error.value).endswith("and 22 more")


def test_a_picture_that_cannot_be_decoded_is_named(broken):
    folder = broken(lambda n, row: {**row, "image": {"bytes": b"no picture", "path": None} if n == 0 else row["image"]})
    (item, other, *_) = load(folder)
    with pytest.raises(DataError, match=rf"'{item.id}': its image cannot be decoded"):
        item.picture()
    assert other.picture().size[0] > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a list of questions"),
        ("{broken", "cannot be read as JSON"),
        ('["a"]', "must hold a list of questions"),
        (
            json.dumps([{"id": 1, "image": "a.png", "question": "?", "answer": "x", "answer_type": "MAYBE"}]),
            "type 'maybe'",
        ),
    ],
)
def test_free_questions_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "free.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        free_items(path, tmp_path, "free", max_new_tokens=5)


def test_free_questions_as_lines_with_other_scripts(tmp_path, prepared):
    load(prepared)[0].picture().save(tmp_path / "a.png")
    row = {"id": "q", "image": "a.png", "question": "\u4ec0\u4e48 {0} \U0001f600", "answer": "\u5c0f"}
    (tmp_path / "free.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    (item,) = free_items(tmp_path / "free.jsonl", tmp_path, "free", max_new_tokens=5)
    assert (item.prompt, item.reference, item.kind) == (row["question"], "\u5c0f", None)
    with pytest.raises(DataError, match="cannot be read"):
        free_items(tmp_path / "none.jsonl", tmp_path, "free", max_new_tokens=5)


def test_free_questions_can_name_the_set_they_count_in(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [
        {"id": str(n), "image": "a.png", "question": "?", "answer": "x", "set": name}
        for n, name in enumerate(["p", None])
    ]
    (tmp_path / "free.json").write_text(json.dumps(rows))
    items = free_items(tmp_path / "free.json", tmp_path, "free", max_new_tokens=5)
    assert [item.dataset for item in items] == ["p", "free"]


def test_slakes_other_language_is_asked_only_where_it_is_wanted(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [
        {"qid": n, "img_name": "a.png", "question": "?", "answer": "x", "answer_type": "OPEN", "q_lang": language}
        for n, language in enumerate(["en", "zh", "en"])
    ]
    (tmp_path / "slake.json").write_text(json.dumps(rows))

    def ids(**options):
        items = free_items(tmp_path / "slake.json", tmp_path, "slake", max_new_tokens=5, **options)
        return [item.id for item in items]

    assert ids() == ["0", "2"]
    assert ids(limit=2) == ["0", "2"]
    assert ids(languages=["zh", "en"]) == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"free.languages: no question of .* is in de; it has en, zh"):
        ids(languages=["de"])


def test_questions_of_every_kind(broken):
    """Format 2: closed and open questions have an answer's text instead of options."""
    kinds = {
        1: {"kind": "open", "answer_text": "dark red", "options": None, "answer": None},
        2: {"kind": "closed", "answer_text": "yes", "options": None, "answer": None},
    }
    folder = broken(
        lambda n, row: {**row, "kind": "choice", "answer_text": row["options"][row["answer"]]} | kinds.get(n, {})
    )
    items = load(folder)
    assert [(item.task, item.kind) for item in items[:3]] == [
        ("choice", "choice"),
        ("free", "open"),
        ("free", "closed"),
    ]
    assert items[0].answer_text in items[0].options
    assert (items[1].answer_text, items[2].answer_text) == ("dark red", "yes")
    assert items[1].prompt.endswith("?")  # no options, no form of the answer


def test_an_unknown_kind_is_refused(broken):
    with pytest.raises(DataError, match="is of kind 'essay', expected one of choice, closed, open"):
        load(broken(lambda n, row: {**row, "kind": "essay" if n == 3 else "choice", "answer_text": "x"}))


def test_every_image_is_anothers_control_once(prepared):
    items = load(prepared)
    controls = control_items(items)
    assert [control.id for control in controls] == [item.id for item in items]
    exchanged = {item.image_id: control.image_id for item, control in zip(items, controls, strict=True)}
    assert set(exchanged) == set(exchanged.values())
    assert all(image != other for image, other in exchanged.items())
    pictures = {item.image_id: item.picture().tobytes() for item in items}
    assert all(control.picture().tobytes() == pictures[control.image_id] for control in controls)
    assert {(c.task, c.prompt, c.answer) for c in controls} == {("control", i.prompt, i.answer) for i in items}
    assert control_items(items[:1]) == []


def test_limit_never_cuts_a_rotation_group(broken):
    folder = broken(lambda n, row: {**row, "circular_group": f"g{n // 3}"})
    assert [len(load(folder, limit=limit)) for limit in (1, 3, 4, 31)] == [3, 3, 6, 32]
