"""The quickstart around its training: paths on the command line, and the output folder."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from nemo_codert.cli import quickstart
from nemo_codert.config.hydra_text import hydra_value


@pytest.mark.parametrize(
    "path",
    [
        "runs/plain",
        "my runs/first, second",
        "a (b) [c] {d}",
        "key=value:other",
        'it\'s "quoted"',
        "''",
        "back\\slash",
        "back\\\\slash",
        "slash before \\' and at the end\\",
        "~a %b &c ;d !e #f",
    ],
)
def test_a_path_arrives_through_hydras_command_line_as_it_is(path):
    override = OverridesParser.create().parse_override(f"exp_manager.exp_dir={hydra_value(path)}")
    assert override.value() == path


def test_a_new_an_empty_and_its_own_folder_are_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "run", tmp_path / "empty"):
        quickstart.claim(folder)
        (folder / "report.md").write_text("earlier")
        quickstart.claim(folder)
        assert (folder / "report.md").read_text() == "earlier"


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "training").mkdir()
    with pytest.raises(SystemExit, match="holds something else than a quickstart: give a new folder"):
        quickstart.claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["training"]
