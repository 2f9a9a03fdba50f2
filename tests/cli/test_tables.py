"""The table of all commands, and arguments of the library printed as options."""

import argparse

import pytest

from nemo_codert.cli.console import exit_status
from nemo_codert.cli.tables import format_table, print_table
from nemo_codert.config.arguments import require_at_least, require_choice, require_file

pytestmark = pytest.mark.unit


def test_names_are_flush_left_and_figures_flush_right(capsys):
    rows = [("dev", "7", "a"), ("test_all", "120", "bb")]
    assert format_table(("set", "words", "file"), rows).splitlines() == [
        "set       words  file",
        "dev           7     a",
        "test_all    120    bb",
    ]
    print_table("Sets", ("set", "words", "file"), rows, left=(0, 2))
    assert capsys.readouterr().out.splitlines() == [
        "Sets",
        "set       words  file",
        "dev           7  a",
        "test_all    120  bb",
    ]
    assert format_table(("only", "names"), []) == "only  names"


def test_an_argument_in_an_error_is_printed_as_an_option_of_the_command(capsys):
    def refuse() -> None:
        raise ValueError("`top_k` is 21, but `branch` of `a_pair` is `teacher`")

    assert exit_status(refuse, argparse.Namespace(top_k=21, branch="both")) == 2
    assert capsys.readouterr().err == "error: --top-k is 21, but --branch of `a_pair` is `teacher`\n"
    exit_status(refuse)
    assert capsys.readouterr().err == "error: `top_k` is 21, but `branch` of `a_pair` is `teacher`\n"


def test_arguments_are_refused_by_name_and_none_is_let_through():
    require_file("teacher", None)
    require_at_least("limit", None, 1)
    require_at_least("limit", 1, 1)
    with pytest.raises(ValueError, match="`config` is absent.yaml: no such file$"):
        require_file("config", "absent.yaml")
    with pytest.raises(ValueError, match="`limit` is 0, wanted 1 or more"):
        require_at_least("limit", 0, 1)
    with pytest.raises(ValueError, match="`branch` is 'both', wanted one of student, teacher"):
        require_choice("branch", "both", ("student", "teacher"))
