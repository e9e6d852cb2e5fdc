"""Archives: equal bytes, nothing unpacked beyond bounds, no two ways of reading them."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archive.bounded import Contents
from archive.digest import digest
from archive.errors import ArchiveError
from archive.read import Archive, read_policy, unpack
from archive.write import STORED_FROM, pack

MANIFEST = json.dumps({"model": {"modelName": "vla", "modelVersion": "1.0"}}).encode()


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w" * 1000)
    for name in ("a.mar", "b.mar"):
        pack({"x": b"1", "folder/weights": tmp_path / "weights"}, tmp_path / name)

    assert digest(tmp_path / "a.mar") == digest(tmp_path / "b.mar")
    unpacked = unpack(tmp_path / "a.mar", tmp_path / "out")
    assert (unpacked / "folder" / "weights").read_bytes() == b"w" * 1000


def test_stored_weights_are_read_whatever_their_size(tmp_path: Path) -> None:
    """A sparse file stands for gigabytes of weights, more than the allowance for small archives."""
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(10 * STORED_FROM)
    pack({"MAR-INF/MANIFEST.json": MANIFEST, "weights": tmp_path / "weights"}, tmp_path / "vla.mar")

    archive = Archive.open(tmp_path / "vla.mar")

    assert archive.unpacked_bytes == 10 * STORED_FROM + len(MANIFEST)
    assert (archive.name, archive.version, archive.policy, archive.example) == ("vla", "1.0", None, None)


def bomb(path: Path, size: int) -> Path:
    """Write an archive with one member of zeros that nearly vanish."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as mar:
        mar.writestr("MAR-INF/MANIFEST.json", MANIFEST)
        with mar.open("policy.json", "w", force_zip64=True) as member:
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))
    return path


@pytest.fixture(scope="module")
def large_bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bomb(tmp_path_factory.mktemp("large") / "bomb.mar", 400 << 20)


@pytest.mark.parametrize("read", [Archive.open, read_policy, lambda path: unpack(path, path.parent / "out")])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    large_bomb: Path, read: Callable[[Path], object]
) -> None:
    assert large_bomb.stat().st_size < 2e6

    with pytest.raises(ArchiveError, match=r"bomb\.mar has 0\.4 MB and unpacks to 419\.4 MB, .* zip bomb"):
        read(large_bomb)

    assert not list(large_bomb.parent.glob("out/*"))


def test_a_size_that_lies_is_found_where_it_is_passed(tmp_path: Path) -> None:
    """The list of contents and the head say 1,000 bytes; 8 MiB come out."""
    path = bomb(tmp_path / "lies.mar", 8 << 20)
    data = path.read_bytes()
    true, lie = (8 << 20).to_bytes(8, "little"), (1000).to_bytes(8, "little")
    assert data.count(true) == 1  # in the head; the list has it in 32 bits
    data = data.replace(true, lie).replace(true[:4], lie[:4])
    path.write_bytes(data)
    assert zipfile.ZipFile(path).getinfo("policy.json").file_size == 1000

    with pytest.raises(ArchiveError, match=r"policy\.json has another size than the list of contents says"):
        unpack(path, tmp_path / "out")
    assert (tmp_path / "out" / "policy.json").stat().st_size <= 1000


def test_sizes_of_the_head_must_be_those_of_the_list(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "small.mar", "w") as mar:
        mar.writestr("x", b"12345")
    data = bytearray((tmp_path / "small.mar").read_bytes())
    data[22:26] = (4).to_bytes(4, "little")
    (tmp_path / "small.mar").write_bytes(data)

    with pytest.raises(ArchiveError, match="x has other sizes than the list of contents says"):
        Contents.of(tmp_path / "small.mar")


def test_a_member_that_the_list_hides_is_found(tmp_path: Path) -> None:
    """What reads from the first byte on would unpack it all the same."""
    path = tmp_path / "hidden.mar"
    with zipfile.ZipFile(path, "w") as mar:
        mar.writestr("MAR-INF/MANIFEST.json", MANIFEST)
        mar.writestr("hidden", b"x" * 100)
        mar.writestr("seen", b"y")
        mar.filelist = [member for member in mar.filelist if member.filename != "hidden"]

    with pytest.raises(ArchiveError, match="seen does not begin where the member before it ends"):
        Archive.open(path)


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shared.mar"
    with zipfile.ZipFile(path, "w") as mar:
        mar.writestr("a", b"x" * 100)
        mar.writestr("b", b"y")
        mar.filelist[1].header_offset = 0

    with pytest.raises(ArchiveError, match="does not begin where the member before it ends"):
        Contents.of(path)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.mar", "w") as mar:
        mar.writestr(name, b"x")

    with pytest.raises(ArchiveError, match="has a name that leads out of the folder"):
        unpack(tmp_path / "evil.mar", tmp_path / "out")

    assert not (tmp_path / "evil").exists()


def test_sizes_behind_a_member_are_read(tmp_path: Path) -> None:
    """So a zip file is written into a pipe."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any, /) -> int:
            self.data += bytes(data)
            return len(data)

    pipe: Any = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as mar:
        mar.writestr("MAR-INF/MANIFEST.json", MANIFEST)
        mar.writestr("x", b"x" * 1000)
    (tmp_path / "pipe.mar").write_bytes(pipe.data)

    assert Archive.open(tmp_path / "pipe.mar").unpacked_bytes == 1000 + len(MANIFEST)


def test_the_example_is_a_request(tmp_path: Path) -> None:
    example = {
        "images": {"front": ["f.0.png", "f.1.png"], "wrist": "w.png"},
        "command": "",
        "seed": 3,
        "state": [0.5],
        "actions": [[1, 2]],
    }
    files = {"f.0.png": b"0", "f.1.png": b"1", "w.png": b"w"}
    files |= {"MAR-INF/MANIFEST.json": MANIFEST, "policy.json": json.dumps({"example": example}).encode()}
    pack(files, tmp_path / "vla.mar")

    found = Archive.open(tmp_path / "vla.mar").example

    assert found is not None
    assert found.images == {
        "image.front.0": ("f.0.png", b"0"),
        "image.front.1": ("f.1.png", b"1"),
        "image.wrist": ("w.png", b"w"),
    }
    assert found.fields == {"seed": "3", "state": "[0.5]"}
    assert found.actions == ((1, 2),)
