"""A zip file, read within bounds: what it unpacks to is known before the first byte is unpacked.

TorchServe's front end unpacks an archive from its first byte to its last and looks at no list of contents. So
this reader takes only files in which both ways of reading find the same: the members that the list names, one
after the other, of the sizes that the list states.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from archive.errors import ArchiveError
from archive.write import PIECE

# An archive may unpack to this many times its size, and 128 MiB more: text and zeros shrink most.
LARGEST_RATIO = 20
ALLOWANCE = 128 << 20
LARGEST_COUNT = 10_000
# The head of a member: signature, version, flags, method, time, date, CRC-32, two sizes, two lengths.
HEAD = struct.Struct("<4s5H3I2H")
ENCRYPTED, SIZES_FOLLOW = 0x1, 0x8
# After a member whose sizes follow it: a signature, the CRC-32 and two sizes.
LONGEST_TAIL = 24
IN_ZIP64 = 0xFFFFFFFF


@dataclass(frozen=True)
class Contents:
    """The members of an opened zip file, by name."""

    path: Path
    members: dict[str, zipfile.ZipInfo]

    @classmethod
    def of(cls, path: Path) -> "Contents":
        """Read the list of members.

        Raises:
            ArchiveError: no zip file, or one that unpacks to more than its size allows.
        """
        try:
            with zipfile.ZipFile(path) as zipped:
                members = zipped.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise ArchiveError(f"{path} is not a TorchServe archive ({error}); export it again") from error
        found = cls(path, {member.filename: member for member in members})
        if len(found.members) < len(members) or len(members) > LARGEST_COUNT:
            raise ArchiveError(f"{path} has {len(members)} members, at most {LARGEST_COUNT} and each once")
        found._check_sizes()
        return found

    @property
    def unpacked_bytes(self) -> int:
        """What the members have unpacked, together."""
        return sum(member.file_size for member in self.members.values())

    def read(self, name: str) -> bytes:
        """Return one member's bytes.

        Raises:
            KeyError: there is none of that name.
            ArchiveError: it is damaged.
        """
        member = self.members[name]
        with self.path.open("rb") as file:
            return b"".join(self._pieces(file, member))

    def verify(self) -> None:
        """Read every member.

        Raises:
            ArchiveError: one has another size or CRC-32 than the list says.
        """
        with self.path.open("rb") as file:
            for member in self.members.values():
                for _ in self._pieces(file, member):
                    pass

    def unpack(self, folder: Path) -> None:
        """Write every member below a folder.

        Raises:
            ArchiveError: one is damaged, or would lie outside the folder.
        """
        with self.path.open("rb") as file:
            for name, member in self.members.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if member.is_dir():
                    target.mkdir(exist_ok=True)
                    continue
                with target.open("wb") as written:
                    for piece in self._pieces(file, member):
                        written.write(piece)

    def _check_sizes(self) -> None:
        size = self.path.stat().st_size
        if self.unpacked_bytes > (limit := ALLOWANCE + LARGEST_RATIO * size):
            raise ArchiveError(
                f"{self.path} has {_mb(size)} and unpacks to {_mb(self.unpacked_bytes)}, more than the "
                f"{_mb(limit)} that its size allows: it looks like a zip bomb and is not unpacked"
            )
        end = 0
        with self.path.open("rb") as file:
            for member in sorted(self.members.values(), key=lambda member: member.header_offset):
                if not end <= member.header_offset <= end + LONGEST_TAIL:
                    raise self._damaged(member, "does not begin where the member before it ends")
                end = self._begin(file, member) + member.compress_size
        if end > size:
            raise ArchiveError(f"{self.path} is cut short; export it again")

    def _begin(self, file: IO[bytes], member: zipfile.ZipInfo) -> int:
        """Check a member's head against the list, and return where its data begins."""
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
            raise self._damaged(member, "has a name that leads out of the folder")
        file.seek(member.header_offset)
        head = file.read(HEAD.size)
        if len(head) < HEAD.size or head[:4] != b"PK\3\4":
            raise self._damaged(member, "has no head where the list of contents says")
        _, _, flags, method, _, _, _, packed, unpacked, name, extra = HEAD.unpack(head)
        if flags & ENCRYPTED or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._damaged(member, "is neither stored nor deflated")
        declared = [(packed, member.compress_size), (unpacked, member.file_size)]
        if method != member.compress_type or not (
            flags & SIZES_FOLLOW or all(size in (listed, IN_ZIP64) for size, listed in declared)
        ):
            raise self._damaged(member, "has other sizes than the list of contents says")
        return member.header_offset + HEAD.size + name + extra

    def _pieces(self, file: IO[bytes], member: zipfile.ZipInfo) -> Iterator[bytes]:
        """Yield a member's bytes, at most as many as the list says, and check their number and CRC-32."""
        file.seek(self._begin(file, member))
        size, checksum = 0, 0
        inflated = member.compress_type == zipfile.ZIP_DEFLATED
        try:
            for piece in (_inflated if inflated else _stored)(file, member.compress_size):
                size, checksum = size + len(piece), zlib.crc32(piece, checksum)
                if size > member.file_size:
                    break
                yield piece
        except (zlib.error, EOFError) as error:
            raise self._damaged(member, f"can't be read ({error})") from error
        if size != member.file_size:
            raise self._damaged(member, "has another size than the list of contents says")
        if checksum != member.CRC:
            raise self._damaged(member, "has the wrong checksum")

    def _damaged(self, member: zipfile.ZipInfo, what: str) -> ArchiveError:
        return ArchiveError(f"{self.path} is damaged: {member.filename} {what}; export it again")


def _stored(file: IO[bytes], left: int) -> Iterator[bytes]:
    while left:
        piece = file.read(min(left, PIECE))
        if not piece:
            raise EOFError("cut short")
        left -= len(piece)
        yield piece


def _inflated(file: IO[bytes], left: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for piece in _stored(file, left):
        if inflater.eof:
            raise EOFError("its compressed data ends too early")
        packed = piece
        while packed and not inflater.eof:
            yield inflater.decompress(packed, PIECE)
            packed = inflater.unconsumed_tail
    while not inflater.eof and (rest := inflater.decompress(b"", PIECE)):
        yield rest
    if inflater.unused_data or not inflater.eof:
        raise EOFError("its compressed data does not end where it should")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
