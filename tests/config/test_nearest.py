"""The nearest existing name."""

import pytest

from nemo_codert.config.nearest import nearest

pytestmark = pytest.mark.unit


def test_the_most_similar_name_is_returned():
    assert nearest("shared_kdd", ["shared", "shared_kd", "static"]) == "shared_kd"


def test_any_name_is_better_than_none():
    assert nearest("xyz", ["train"]) == "train"
    assert nearest("xyz", []) is None
