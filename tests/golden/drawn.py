"""Numbers that both sides draw alike: weights and pictures of a golden policy, instead of megabytes in git.

`numpy.random.RandomState` gives the same stream in every version of numpy.
"""

import zlib

import numpy as np

# They add 1 to their weights; Llama's of the same names, in SmolVLA, do not.
GEMMA_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight")


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of a parameter or buffer, float32, of a size that keeps activations near 1."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    numbers = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        return 1 + np.abs(numbers)
    if len(shape) > 1:
        return numbers * np.float32(1.4 / np.sqrt(np.prod(shape[1:])))
    centred = 0 if key.endswith(GEMMA_NORMS) and "vlm_with_expert" not in key else 1
    return centred + numbers / 4 if key.endswith("weight") else numbers / 4


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Return a picture of soft-edged blocks, uint8 [height, width, 3]."""
    random = np.random.RandomState(seed)
    blocks = random.randint(0, 256, (-(-height // 16), -(-width // 16), 3))
    large = blocks.repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.clip(large + random.randint(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)
