"""The tokenizer of a policy that comes without one: the user's file, checked to be PaliGemma's kind."""

from pathlib import Path
from typing import Literal

import tokenizers

from export.errors import ExportError
from vla_runtime.spec import Tokenizer

# A token of PaliGemma for which its embedding has no row: pictures come another way.
PICTURE = "<image>"
PROBE = "pick up the cube"
PALIGEMMA = "google/paligemma-3b-pt-224"


def tokenizer(
    path: Path | None,
    rows: int,
    *,
    length: int,
    side: Literal["right", "left"],
    template: str,
    model: str = PALIGEMMA,
) -> Tokenizer:
    """Check a tokenizer, and describe it.

    Args:
        path: a `tokenizers` JSON file
        rows: entries of the policy's word embedding
        length: longest command [tokens]
        side: where shorter ones are padded
        template: the text that is tokenized, with the command in place of `{command}`
        model: whose tokenizer it must be; PaliGemma's begins a text with `<bos>`

    Raises:
        ExportError: it was not given, is none, or is of another model.
    """
    if path is None:
        raise ExportError(
            f"the folder comes without its tokenizer: give --tokenizer FILE, the tokenizer.json of {model}"
        )
    if not path.is_file():
        raise ExportError(f"{path} is missing")
    try:
        found = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ExportError(f"{path} is no tokenizer.json: {error}") from error
    beyond = [word for word, number in found.get_vocab().items() if number >= rows and word != PICTURE]
    if beyond:
        raise ExportError(
            f"{path} has {found.get_vocab_size()} entries and the policy knows {rows}: it is of another model"
        )
    start, ids = found.token_to_id("<bos>"), found.encode(PROBE).ids
    if model == PALIGEMMA and (start is None or ids[:1] != [start]):
        raise ExportError(f"{path} does not begin a command with <bos>, as PaliGemma's does")
    if found.encode(f"{PROBE}\n").ids[:-1] != ids:
        raise ExportError(f"{path} has no token for the end of a line, as the policy's does")
    return Tokenizer(
        file="tokenizer.json",
        context_length=length,
        pad_id=found.token_to_id("<pad>") or 0,
        side=side,
        template=template,
    )
