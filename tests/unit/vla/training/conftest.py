"""What the tests of training share."""

from pathlib import Path

import pytest

from vla.tabletop.collection import Collection, collect


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six demonstrations of the tabletop; no test writes there."""
    folder = tmp_path_factory.mktemp("demonstrations") / "tabletop"
    collect(Collection(out=folder, episodes=6, horizon=2, image_size=32, workers=1))
    return folder
