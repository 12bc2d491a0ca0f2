import json

import numpy as np
import pytest

from flyweight.data.load import open_data, open_inputs
from flyweight.errors import InputError
from flyweight.settings import DataSettings

SETTINGS = DataSettings(calibration_size=4)


def write_images(folder, names):
    from PIL import Image

    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(path)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X_train", "Y_train", "X_val", "Y_val"),
    ],
)
def test_split_arrays_are_read_by_their_names(tmp_path, names):
    arrays = [np.zeros((6, 2)), np.arange(6) % 2, np.ones((3, 2)), np.arange(3) % 2]
    np.savez(tmp_path / "d.npz", **dict(zip(names, arrays, strict=True)))
    data = open_data(tmp_path / "d.npz", SETTINGS)
    assert (len(data.train), len(data.calibration), len(data.evaluation)) == (6, 4, 3)
    assert data.evaluation.targets.dtype == np.int64
    assert len(data.train.inputs) == 1


@pytest.mark.parametrize("target", ["y", "labels", "targets"])
def test_unsplit_arrays_are_split(tmp_path, target):
    np.savez(tmp_path / "d.npz", **{"inputs": np.arange(16.0).reshape(8, 2), target: np.arange(8) % 2})
    data = open_data(tmp_path / "d.npz", SETTINGS)
    assert (len(data.train), len(data.evaluation)) == (6, 2)


def test_named_arrays_are_chosen_by_the_settings(tmp_path):
    arrays = {"left": np.arange(8.0), "right": np.arange(8), "other": np.ones(8), "truth": np.arange(8) % 2}
    np.savez(tmp_path / "d.npz", classes=np.array(["no", "yes"]), **arrays)
    settings = DataSettings(inputs=("left", "right"), target="truth", slices=("other",))
    data = open_data(tmp_path / "d.npz", settings)
    assert list(data.train.inputs) == ["left", "right"]
    assert data.train.classes == ("no", "yes")
    assert list(data.evaluation.columns) == ["other"]


def test_a_chosen_name_is_not_taken_apart(tmp_path):
    np.savez(tmp_path / "d.npz", valid_mask=np.arange(8.0), y=np.arange(8) % 2)
    settings = DataSettings(inputs=("valid_mask",))
    assert list(open_data(tmp_path / "d.npz", settings).train.inputs) == ["valid_mask"]


def test_a_folder_of_npy_files_is_read_by_file_name(tmp_path):
    for name, array in (
        ("x_train", np.zeros((4, 2))),
        ("y_train", np.arange(4) % 2),
        ("x_test", np.ones((2, 2))),
    ):
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "y_test.npy", np.arange(2))
    data = open_data(tmp_path, SETTINGS)
    assert (len(data.train), len(data.evaluation)) == (4, 2)


def test_pickled_objects_are_refused(tmp_path):
    np.save(tmp_path / "d.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="holds Python objects"):
        open_data(tmp_path / "d.npy", SETTINGS)


def test_a_truncated_archive_is_damaged(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((100, 2)))
    (tmp_path / "d.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:200])
    with pytest.raises(InputError, match="damaged"):
        open_data(tmp_path / "d.npz", SETTINGS)


def test_an_array_file_under_another_name_is_refused(tmp_path):
    with (tmp_path / "d.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="under another name"):
        open_data(tmp_path / "d.npz", SETTINGS)


def test_image_folders_are_classes(tmp_path):
    write_images(tmp_path, [f"{name}/{index}.png" for name in ("dog", "cat") for index in range(4)])
    data = open_data(tmp_path, SETTINGS)
    assert data.train.classes == ("cat", "dog")
    assert (len(data.train), len(data.evaluation)) == (6, 2)
    assert sorted(data.evaluation.targets.tolist()) == [0, 1]


def test_split_image_folders_are_kept_apart(tmp_path):
    write_images(tmp_path, ["train/a/1.png", "train/b/2.png", "val/a/3.png"])
    data = open_data(tmp_path, SETTINGS)
    assert [path.name for path in data.train.inputs["image"]] == ["1.png", "2.png"]
    assert data.evaluation.targets.tolist() == [0]


def test_images_without_class_folders_can_be_run_but_not_learnt_from(tmp_path):
    write_images(tmp_path, ["b.png", "a.png"])
    with pytest.raises(InputError, match="put the images of each class in a folder"):
        open_data(tmp_path, SETTINGS)
    assert [path.name for path in open_inputs(tmp_path, SETTINGS).inputs["image"]] == ["a.png", "b.png"]
    assert len(open_inputs(tmp_path / "a.png", SETTINGS)) == 1


def test_text_with_a_header_and_split_files(tmp_path):
    (tmp_path / "train.csv").write_text('text,category\n"hello, you",greet\nbye,part\n')
    (tmp_path / "test.csv").write_text("text,category\ngood bye,part\n")
    (tmp_path / "LICENSE").write_text("free")
    data = open_data(tmp_path, SETTINGS)
    assert data.train.inputs["text"] == ["hello, you", "bye"]
    assert data.evaluation.targets.tolist() == [1]
    assert data.train.classes == ("greet", "part")


def test_sentence_pairs_without_a_header(tmp_path):
    (tmp_path / "pairs.csv").write_text("".join(f"one {i},two {i},{i}.5\n" for i in range(8)))
    data = open_data(tmp_path / "pairs.csv", SETTINGS, class_targets=None)
    assert list(data.train.inputs) == ["text", "text_b"]
    assert data.train.targets.dtype == np.float64
    assert len(data.train) + len(data.evaluation) == 8


def test_a_table_of_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("age,rooms,label\n" + "".join(f"{i}.5,{i},{i % 2}\n" for i in range(8)))
    data = open_data(tmp_path / "t.csv", SETTINGS)
    assert {name: values.dtype for name, values in data.train.inputs.items()} == {
        "age": np.float32,
        "rooms": np.int64,
    }
    assert set(data.train.targets.tolist()) == {0, 1}


def test_parquet_is_read_as_csv_is(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"a": np.arange(8) / 2, "b": np.arange(8), "label": ["x", "y"] * 4})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    one, other = (open_data(tmp_path / name, SETTINGS) for name in ("t.parquet", "t.csv"))
    for name in ("a", "b"):
        np.testing.assert_array_equal(one.train.inputs[name], other.train.inputs[name])
    assert one.train.classes == other.train.classes == ("x", "y")


def test_json_lines(tmp_path):
    rows = [{"text": f"line\u2028{i}", "label": "ab"[i % 2], "source": i % 3} for i in range(8)]
    (tmp_path / "d.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    data = open_data(tmp_path / "d.jsonl", DataSettings(slices=("source",)))
    assert list(data.train.inputs) == ["text"]
    assert set(data.evaluation.columns["source"].tolist()) <= {0, 1, 2}


def test_plain_text_is_one_example_a_line(tmp_path):
    (tmp_path / "new.txt").write_text("first\n\nsecond\r\n")
    assert open_inputs(tmp_path / "new.txt", SETTINGS).inputs == {"text": ["first", "", "second"]}
    assert list(open_inputs(tmp_path / "new.txt", DataSettings(inputs=("query",))).inputs) == ["query"]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\n\nb", ["a", "", "b"]),
        ("\na\n", ["", "a"]),
        ("a\n\n", ["a", ""]),
        ("a\r\n\r\nb\r\n", ["a", "", "b"]),
    ],
)
def test_every_line_to_answer_keeps_its_place(tmp_path, content, lines):
    (tmp_path / "new.txt").write_text(content, newline="")
    assert open_inputs(tmp_path / "new.txt", SETTINGS).inputs == {"text": lines}


def test_images_to_answer_bring_their_files(tmp_path):
    write_images(tmp_path, ["b.png", "z/a.png", "a/c.png"])
    files = open_inputs(tmp_path, SETTINGS).columns["file"]
    assert files.tolist() == ["a/c.png", "b.png", "z/a.png"]
    assert open_inputs(tmp_path / "b.png", SETTINGS).columns["file"].tolist() == ["b.png"]


def test_a_list_of_image_files_brings_them_as_it_names_them(tmp_path, monkeypatch):
    write_images(tmp_path, ["one/b.png", "a.png"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files.py").write_text(
        "from pathlib import Path\ndef made():\n    return [Path('one/b.png'), Path('a.png')]\n"
    )
    assert open_inputs("files.py:made", SETTINGS).columns["file"].tolist() == ["one/b.png", "a.png"]


def test_inputs_do_not_need_the_target(tmp_path):
    settings = DataSettings(inputs=("text",), target="category")
    (tmp_path / "new.csv").write_text("text\nhello\n")
    assert open_inputs(tmp_path / "new.csv", settings).inputs == {"text": ["hello"]}
    (tmp_path / "old.csv").write_text("text,category\nhello,greet\n")
    examples = open_inputs(tmp_path / "old.csv", settings)
    assert examples.inputs == {"text": ["hello"]}
    assert examples.targets is None


def test_evaluation_size_limits_the_evaluation_part(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.arange(40.0), y=np.arange(40) % 2)
    assert len(open_data(tmp_path / "d.npz", DataSettings(evaluation_size=3)).evaluation) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "there is no file or folder"),
        ("d.xyz", "1", "no known kind"),
        ("d.csv", "", "is empty"),
        ("d.csv", "a,b\n1,2\n3\n", "line 3 has 1 cells"),
        ("d.csv", "a,a\n1,2\n", "two columns called 'a'"),
        ("d.csv", "one,two\nthree,four\n", "unclear whether the first row"),
        ("d.csv", "a,b,label\n1,x,0\n2,y,1\n", "column 'b' holds text and 'a' numbers"),
        ("d.csv", "a,label\n1,0\n,1\n3,0\n4,1\n", "input 'a' is missing or not finite in example 1"),
        ("d.csv", "a,label\n1,x\n2,\n", "no label in example 1"),
        ("d.csv", "a,label\n1,0.5\n2,1\n", "is not a class"),
        ("d.csv", b"a,label\n\xff,1\n", "not UTF-8"),
        ("d.csv", 'a,label\n"1,0\n', "cannot read"),
        ("d.jsonl", '{"a": 1}\n{"b": 2}\n', "line 2 has no 'a'"),
        ("d.jsonl", '{"a": 1}\n[]\n', "line 2 is a list"),
        ("d.jsonl", "{\n", "line 1 is not JSON"),
        ("d.parquet", "not parquet", "cannot read"),
        ("d.npz", "not an archive", "cannot read the arrays"),
        ("d.png", b"x", "single image"),
    ],
)
def test_bad_data_give_one_clear_sentence(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        open_data(tmp_path / name, SETTINGS)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_and_a_mixed_one_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"folder .* is empty"):
        open_data(tmp_path, SETTINGS)
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(InputError, match=r"folder .* holds no data of a known kind \(notes\.doc\)"):
        open_data(tmp_path, SETTINGS)
    np.save(tmp_path / "a.npy", np.zeros(2))
    (tmp_path / "b.csv").write_text("1\n")
    with pytest.raises(
        InputError, match=r"holds arrays \(a\.npy\) and tables \(b\.csv\); give one of its files, or take"
    ):
        open_data(tmp_path, SETTINGS)


def test_a_folder_with_the_name_of_a_file_is_called_a_folder(tmp_path):
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(InputError, match=r"folder .*x\.csv is empty"):
        open_data(tmp_path / "x.csv", SETTINGS)


def test_an_empty_folder_in_the_name_of_a_part_is_no_data(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"holds no data of a known kind \(train\)"):
        open_data(tmp_path, SETTINGS)


@pytest.mark.parametrize("note", ["readme.txt", "README", "notes.md", "LICENSE.TXT"])
def test_notes_beside_images_are_no_data(tmp_path, note):
    write_images(tmp_path, [f"{name}/{index}.png" for name in ("dog", "cat") for index in range(4)])
    (tmp_path / note).write_text("photographs of mine")
    assert open_data(tmp_path, SETTINGS).train.classes == ("cat", "dog")
    write_images(tmp_path / "flat", ["a.png"])
    (tmp_path / "flat" / note).write_text("photographs of mine")
    assert len(open_inputs(tmp_path / "flat", SETTINGS)) == 1


def test_pictures_below_a_table_are_no_data(tmp_path):
    write_images(tmp_path, ["figures/a.png"])
    (tmp_path / "train.csv").write_text("a,label\n1,0\n2,1\n")
    assert open_data(tmp_path, SETTINGS).train.targets is not None


def test_notes_beside_arrays_are_no_data(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(8.0))
    (tmp_path / "readme.txt").write_text("numbers of mine")
    assert len(open_inputs(tmp_path, SETTINGS)) == 8


def test_files_that_name_no_part_or_one_twice_are_refused(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("1,2\n")
    with pytest.raises(InputError, match="none is called train or test"):
        open_data(tmp_path, SETTINGS)
    for name in ("x-train.csv", "y_train.csv"):
        (tmp_path / name).write_text("1,2\n")
    with pytest.raises(InputError, match="two files for train"):
        open_data(tmp_path, SETTINGS)


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    (tmp_path / "d.csv").write_text("age,label\n1,0\n2,1\n")
    with pytest.raises(InputError, match=r"has no column 'agee'; its first row is 'age, label'"):
        open_data(tmp_path / "d.csv", DataSettings(inputs=("agee",)))
