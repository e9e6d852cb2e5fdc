"""Makes `bytes/bytes.json`: a command in lower case as its UTF-8 bytes, each its own id, a space before it.

python vla/assets/build_byte_tokenizer.py vla/assets/bytes
"""

import sys
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode


def main(folder: Path) -> None:
    """Write `bytes.json` into the folder."""
    vocabulary = {letter: byte for byte, letter in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    tokenizer.save(str(folder / "bytes.json"), pretty=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
