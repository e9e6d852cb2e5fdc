"""The real LeRobot reads what we write; `make test-lerobot-data` runs this in an environment of its own."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vla.data.lerobot.reader import Dataset
from vla.data.lerobot.writer import write
from vla.data.tabletop import Tabletop
from vla.tabletop.collection import Collection, collect

PYTHON = os.environ.get("LEROBOT_PYTHON")
SCRIPT = Path(__file__).parents[3] / "golden" / "make_lerobot_data.py"


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="LEROBOT_PYTHON names no interpreter that has LeRobot")
def test_the_real_library_reads_and_counts_what_we_write(tmp_path: Path) -> None:
    data = collect(Collection(tmp_path / "tabletop", 6, seed=5, horizon=1, image_size=32, workers=1))
    source = Tabletop(data)
    write(source.about, source, tmp_path / "ours")
    command = [str(PYTHON), str(SCRIPT), "read", str(tmp_path / "ours"), str(tmp_path / "theirs")]
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"HF_HUB_OFFLINE": "1"})

    read = np.load(tmp_path / "theirs.npz")
    assert np.array_equal(read["observation.images.front"], data.images)
    assert np.array_equal(read["observation.state"], data.state)
    assert np.array_equal(read["action"], np.concatenate([each.actions for each in source]))
    assert read["task"].tolist() == [command for each in source for command in each.commands]
    ours, theirs = Dataset(tmp_path / "ours"), Dataset(tmp_path / "theirs")
    assert ours.statistics.keys() == theirs.statistics.keys()
    for column, values in ours.statistics.items():
        for name, value in values.items():
            if (column, name) != ("observation.images.front", "std"):  # it squares pictures in 8 bits
                expected = theirs.statistics[column][name]
                # A quantile may fall into the next of 5000 bins, since it computes in single precision.
                bin_width = np.max(values["max"] - values["min"]) / 5000
                np.testing.assert_allclose(
                    value, expected, rtol=1e-5, atol=1e-5 + bin_width, err_msg=f"{column} {name}"
                )
