"""Teachers' files that are saved once for all tests of this folder."""

import shutil
from pathlib import Path

import pytest

from tests.models.teacher_files import save_teacher


@pytest.fixture(scope="session")
def saved_teacher(make_config, tmp_path_factory):
    """`save_teacher` for tests that only read: one file and one original model for each kind and settings.

    `saved_teacher(folder, kind, **settings)` copies the file into `folder`, which may do with it what it likes.
    """
    kept = {}

    def save(folder: Path, kind: str, **settings):
        key = repr((kind, sorted(settings.items())))
        if key not in kept:
            kept[key] = save_teacher(make_config, tmp_path_factory.mktemp("teachers"), kind, **settings)
        path, original = kept[key]
        return shutil.copy(path, folder), original

    return save
