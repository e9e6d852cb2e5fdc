"""What is wrong with an archive; each message says what to do."""


class ArchiveError(RuntimeError):
    """The archive is missing, damaged, too large for its size, no archive, or not the one that was meant."""
