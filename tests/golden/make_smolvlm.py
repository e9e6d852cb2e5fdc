"""A small SmolVLM for the golden SmolVLA: LeRobot asks a hub for its config.json and its tokenizer."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

from lerobot.policies.smolvla import smolvlm_with_expert
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, SmolVLMConfig

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<fake_token_around_image>", "<image>", "<global-img>"),
]


def write(folder: Path, commands: list[str]) -> None:
    """Write its config.json, and a tokenizer of its kind, in which no byte is unknown."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(commands, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.save_pretrained(folder)
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": len(tokenizer), "rms_norm_eps": 1e-5}
    vision = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision |= {"image_size": 64, "patch_size": 8, "model_type": "smolvlm_vision"}
    SmolVLMConfig(
        text_config=text | {"model_type": "llama"},
        vision_config=vision,
        scale_factor=2,
        image_token_id=4,
        pad_token_id=2,
        tie_word_embeddings=False,
    ).save_pretrained(folder)


def full_size() -> SmolVLMConfig:
    """Return what SmolVLM2-500M is, as far as it decides the weights' shapes."""
    text = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15}
    text |= {"num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280, "model_type": "llama"}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    vision |= {"num_attention_heads": 12, "image_size": 512, "patch_size": 16}
    return SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=4, tie_word_embeddings=False)


def use(config: SmolVLMConfig) -> None:
    """Let LeRobot build this one, instead of the one that it asks a hub for."""
    # It takes two numbers from the processor.
    tokens = SimpleNamespace(fake_image_token_id=3, global_image_token_id=5)
    smolvlm_with_expert.AutoConfig = SimpleNamespace(from_pretrained=lambda _name: deepcopy(config))
    smolvlm_with_expert.AutoProcessor = SimpleNamespace(
        from_pretrained=lambda _name: SimpleNamespace(tokenizer=tokens)
    )
