"""What a script says and how it ends where the user's options, files or folders are at fault."""

import pytest

from nemo_codert.console import exit_status


def ends(work, capsys) -> tuple[int, str]:
    return exit_status(work), capsys.readouterr().err


def refuse() -> None:
    raise ValueError("--model is x: no such file")


def test_a_fault_is_one_line_and_exit_status_2(capsys):
    assert ends(lambda: None, capsys) == (0, "")
    assert ends(refuse, capsys) == (2, "error: --model is x: no such file\n")


def test_a_path_that_the_system_refuses_is_named_without_a_traceback(tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    for work, path, reason in (
        (lambda: (file / "below").mkdir(parents=True), file / "below", "Not a directory"),
        (file.mkdir, file, "File exists"),
        ((tmp_path / "absent" / "o.nemo").touch, tmp_path / "absent" / "o.nemo", "No such file or directory"),
    ):
        expected = f"error: {path}: {reason}. Give a path that can be read or written\n"
        assert ends(work, capsys) == (2, expected)


def test_an_error_of_the_system_without_a_path_is_told_as_it_is(capsys):
    def stop() -> None:
        raise OSError("no room")

    assert ends(stop, capsys) == (2, "error: no room\n")


def test_a_fault_of_ours_stays_a_traceback():
    with pytest.raises(KeyError):
        exit_status(lambda: {}["absent"])
