"""What the tests of the reliability campaign share: they write down what they injected and what came of it.

`make test-reliability` runs the whole campaign; tests/reliability/fault_table.py prints its table.
"""

import os
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.reliability.fault_table import Campaign


@pytest.fixture(scope="session")
def campaign_folder() -> Path:
    """Where the campaign leaves its records and pictures."""
    folder = Path(os.environ.get("RELIABILITY_DIR", REPOSITORY / "reliability_run"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def campaign(campaign_folder, request) -> Campaign:
    """`campaign.record(fault, injected=..., survived=..., lost=...)`: one row of the table, before it is asserted."""
    return Campaign(campaign_folder, request.node.name)
