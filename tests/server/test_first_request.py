"""What a new user types: the README's request, and the one that the server prints."""

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from server.ports import free_port
from server.process import TorchServe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def run_curl(command: str) -> dict[str, Any]:
    answer = subprocess.run(
        [*shlex.split(command), "-sS", "--fail-with-body"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return json.loads(answer.stdout)


def readme_request(server: TorchServe) -> str:
    (block,) = re.findall(r"```bash\n(curl .*?)```", README, re.DOTALL)
    assert "http://127.0.0.1:8080/predictions/vla" in block
    return block.replace("http://127.0.0.1:8080", server.url).replace("\\\n", " ")


def test_request_of_the_readme(served_policy: TorchServe) -> None:
    answer = run_curl(readme_request(served_policy))

    assert answer["action_names"] == ["delta_x", "delta_y", "delta_z", "gripper"]
    assert len(answer["actions"]) == 8


def test_fields_of_the_readmes_answer(served_policy: TorchServe) -> None:
    shown = json.loads(re.findall(r"```json\n(.*?)```", README, re.DOTALL)[0])

    answer = run_curl(readme_request(served_policy))

    assert answer.keys() == shown.keys()
    assert answer["timing_ms"].keys() == shown["timing_ms"].keys()


def test_request_that_the_server_prints(policy_archive: Path) -> None:
    arguments = [sys.executable, "-m", "server", "--archive", policy_archive, "--port", str(free_port())]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = list(itertools.takewhile(lambda line: line != "try it:\n", process.stdout))
            assert said[-1].startswith("ready: "), "".join(said)
            answer = run_curl(process.stdout.readline())
            process.terminate()
            process.communicate(timeout=30)
        finally:
            process.terminate()

    assert process.returncode == 0
    assert len(answer["actions"]) == 8
