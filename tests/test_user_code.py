"""Objects of the user's own code."""

from __future__ import annotations

import sys

import pytest

from flyweight.errors import InputError, UnsupportedError
from flyweight.user_code import is_spec, user_object


@pytest.mark.parametrize("text", ["nets.py:net", "a/b c/nets.py:net", "package.module:name"])
def test_names_of_objects_are_told_from_paths(text):
    assert is_spec(text)


@pytest.mark.parametrize("text", ["nets.py", "folder/model", "nets.py:", "a/b:c", ":net"])
def test_other_texts_name_nothing(text):
    assert not is_spec(text)


def test_modules_beside_the_file_can_be_imported_while_it_is_used(tmp_path):
    (tmp_path / "beside_it.py").write_text("VALUE = 3\n")
    (tmp_path / "mine.py").write_text("def make():\n    import beside_it\n    return beside_it.VALUE\n")
    before = list(sys.path)
    with user_object(f"{tmp_path / 'mine.py'}:make") as make:
        assert make() == 3
    assert sys.path == before


def test_packages_of_the_current_folder_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "own_package_here").mkdir()
    (tmp_path / "own_package_here" / "nets.py").write_text("value = 4\n")
    monkeypatch.chdir(tmp_path)
    with user_object("own_package_here.nets:value") as value:
        assert value == 4


def test_what_the_code_raises_is_told_with_the_users_line(tmp_path):
    (tmp_path / "mine.py").write_text("def make():\n    return {}['key']\n")
    told = r"raised KeyError: 'key' \(mine\.py, line 2: return"
    with pytest.raises(InputError, match=told), user_object(f"{tmp_path / 'mine.py'}:make") as make:
        make()


def test_our_own_errors_pass_as_they_are(tmp_path):
    (tmp_path / "mine.py").write_text("value = 1\n")
    with pytest.raises(UnsupportedError, match=r"^as it is$"), user_object(f"{tmp_path / 'mine.py'}:value"):
        raise UnsupportedError("as it is")


def test_an_error_while_importing_is_told(tmp_path):
    (tmp_path / "mine.py").write_text("import no_such_package\n")
    told = r"importing .*mine\.py raised ModuleNotFoundError"
    with pytest.raises(InputError, match=told), user_object(f"{tmp_path / 'mine.py'}:make"):
        pass
