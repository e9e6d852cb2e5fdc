"""Why an export was refused."""


class ExportError(ValueError):
    """The checkpoint can't become an archive; the message says what is wrong and what to do."""
