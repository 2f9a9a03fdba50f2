"""`codert configs`: what is shipped, and a copy of one in the user's folder that still inherits from the others."""

import re

import pytest

from nemo_codert.cli.configs import header_line, main
from nemo_codert.config.search import check_names, config_search
from nemo_codert.config.shipped import shipped_configs

pytestmark = pytest.mark.unit


def test_the_list_has_every_config_with_its_line(capsys):
    assert main(["ls"]) == 0
    text = capsys.readouterr().out
    for name, path in shipped_configs().items():
        shown = name.replace("strategy/", "strategy=")
        assert re.search(rf"^  {re.escape(shown)} +{re.escape(header_line(path))}$", text, re.MULTILINE), name
        assert header_line(path), name
    assert (
        text.index("Configs") < text.index("  quickstart ") < text.index("Strategies") < text.index("strategy=static")
    )


def test_a_copy_is_the_file_and_is_found(tmp_path, capsys):
    folder = tmp_path / "new" / "my_pair"
    assert main(["cp", "fsdd_streaming", str(folder)]) == 0
    assert (folder / "fsdd_streaming.yaml").read_bytes() == shipped_configs()["fsdd_streaming"].read_bytes()
    assert f"--config-dir {folder} --config-name fsdd_streaming" in capsys.readouterr().out
    search = config_search(["--config-dir", str(folder), "--config-name", "fsdd_streaming", "strategy=static"])
    assert search.file("fsdd_streaming").parent == folder
    check_names(search)  # the parent, fsdd, is the shipped one


def test_a_copy_may_have_another_name_or_be_a_strategy(tmp_path):
    assert main(["cp", "fsdd.yaml", str(tmp_path / "mine.yaml")]) == 0
    assert main(["cp", "strategy/static", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.rglob("*.yaml")) == ["mine.yaml", "static.yaml"]
    check_names(config_search(["--config-dir", str(tmp_path), "--config-name", "mine", "strategy=static"]))


@pytest.mark.parametrize("name, near", [("fssd", "fsdd"), ("static", "strategy/static"), ("", "base")])
def test_an_unknown_name_gets_the_nearest(name, near, tmp_path, capsys):
    assert main(["cp", name, str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: there is no config {name!r}, the nearest is ")
    assert error.count("\n") == 1
    if name:
        assert repr(near) in error
    assert not (tmp_path / "new").exists()


def test_nothing_is_replaced(tmp_path, capsys):
    (tmp_path / "fsdd.yaml").write_text("mine")
    assert main(["cp", "fsdd", str(tmp_path)]) == 2
    assert "fsdd.yaml is there already and is not replaced" in capsys.readouterr().err
    assert (tmp_path / "fsdd.yaml").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["cp", "fsdd", str(tmp_path / "file" / "folder")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
