"""Makes `clip/tokenizer.json`, CLIP's byte-pair tokenizer, from the published merges.

The merges are `bpe_simple_vocab_16e6.txt.gz` of Radford et al. 2021 (github.com/openai/CLIP, MIT), which the
wheel open-clip-torch 3.3.0 carries. The vocabulary is, in this order: 256 bytes, the same 256 bytes as word
ends, one entry a merge, start of text, end of text.

    python vla/assets/build_clip_tokenizer.py PATH/bpe_simple_vocab_16e6.txt.gz vla/assets/clip
"""

import gzip
import hashlib
import sys
from pathlib import Path

from transformers import CLIPTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]
from transformers.convert_slow_tokenizer import bytes_to_unicode

SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
SIZE = 49408


def main(source: Path, folder: Path) -> None:
    """Write `tokenizer.json` into the folder."""
    packed = source.read_bytes()
    if (digest := hashlib.sha256(packed).hexdigest()) != SHA256:
        raise SystemExit(f"{source}: SHA-256 is {digest}, the published file's is {SHA256}")
    lines = gzip.decompress(packed).decode().splitlines()
    merges = [tuple(line.split()) for line in lines[1 : SIZE - 512 - 2 + 1]]
    letters = list(bytes_to_unicode().values())
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    if len(vocabulary) != SIZE:
        raise SystemExit(f"the vocabulary has {len(vocabulary)} entries instead of {SIZE}")
    tokenizer = CLIPTokenizerFast(vocab=vocabulary, merges=merges, model_max_length=77)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
