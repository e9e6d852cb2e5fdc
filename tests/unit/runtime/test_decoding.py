"""What decoding a large JPEG at reduced scale changes, in the units of the default policy's actions."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from archive.read import unpack
from vla.tabletop.simulator import Tabletop
from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy

# Largest difference of delta_x, delta_y, delta_z [m] and gripper [1], of steps up to 0.03 m and a range of 2.
SCENES_BOUND = (0.001, 0.001, 0.001, 0.05)


@pytest.fixture(scope="module")
def policy(policy_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("decoding")
    return Policy.load(unpack(policy_archive, folder))


def file(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def actions(policy: Policy, image: bytes, state: np.ndarray) -> np.ndarray:
    row: Row = {"image": image, "command": "push the red block", "state": state.tolist()}
    answer = policy.infer([row])[0]
    assert isinstance(answer, Answer)
    return answer.chunk.actions


def test_reduced_decoding_moves_the_robot_by_less_than_a_millimetre(policy: Policy) -> None:
    robot = Tabletop()
    differences = []
    for seed in range(8):
        robot.reset(seed)
        jpeg = file(Image.fromarray(robot.render(480)), "JPEG", quality=90)
        # A PNG of the same pixels is decoded in full, which is Pillow's reference.
        png = file(Image.open(io.BytesIO(jpeg)), "PNG")
        reduced, full = (actions(policy, image, robot.state()) for image in (jpeg, png))
        differences.append(np.abs(reduced - full).max(0))
    robot.close()

    largest = np.max(differences, axis=0)
    print(f"largest difference [m, m, m, 1]: {largest}")
    assert largest.max() > 0  # the JPEG was decoded at reduced scale
    assert (largest <= SCENES_BOUND).all()
