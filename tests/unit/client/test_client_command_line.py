"""`python -m vla_client` against a real HTTP server."""

import PIL.Image
import pytest
from policy_server import PICTURE, running_server

from vla_client.__main__ import main


@pytest.fixture
def server():
    with running_server() as running:
        yield running


def test_command_line_prints_the_chunk(server, tmp_path, capsys):
    picture = tmp_path / "a.png"
    PIL.Image.fromarray(PICTURE).save(picture)
    assert main([str(picture), "lift it", "--state", "-0.5", "1", "--url", server.url]) == 0
    assert server.requests[0][2]["image"] == ("image/png", picture.read_bytes())
    assert server.requests[0][2]["state"][1] == b"[-0.5, 1.0]"
    assert (
        capsys.readouterr().out
        == """\
policy      tabletop 1.0, request r-1
confidence  0.97
safety      clamped
            x exceeds its limit by 0.1 m
timing [ms] queue 1, inference 4.5, batch_size 4

step   t [s]           x           y        grip
   0    0.00     +0.0100     -0.0200     +1.0000
   1    0.10     +0.0200     -0.0100     +1.0000
"""
    )


def test_command_line_takes_several_cameras(server, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"\xff\xd8" + name.encode())
    assert main([f"front={tmp_path}/a,wrist={tmp_path}/b", "go", "--url", server.url]) == 0
    fields = server.requests[0][2]
    assert fields["image.front"] == ("image/jpeg", b"\xff\xd8a")
    assert fields["image.wrist"] == ("image/jpeg", b"\xff\xd8b")


def test_command_line_says_what_failed(server, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8")
    server.status = 400
    server.answer = '{"error": {"code": "missing_field", "field": "state", "message": "needs 4 numbers"}}'
    assert main([str(tmp_path / "a.jpg"), "go", "--url", server.url]) == 1
    assert capsys.readouterr().err == (
        "python -m vla_client: 400 missing_field, field 'state': needs 4 numbers\n"
    )
    assert main([str(tmp_path / "none.jpg"), "go"]) == 1
    assert "none.jpg" in capsys.readouterr().err
