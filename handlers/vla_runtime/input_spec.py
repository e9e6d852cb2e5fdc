"""What of a request the policy sees, and how: its cameras, and the tokenizer of its command."""

from typing import Literal

from vla_runtime.vectors import Part, require

Resize = Literal["crop", "pad", "stretch", "none"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Values = Literal["mean_std", "zero_to_one", "minus_one_to_one"]


class Camera(Part, frozen=True):
    """How one camera's picture becomes a tensor.

    resize: what fits a picture of any size into `width` x `height`
        crop     shortest edge to fit, then the central part (CLIP, Radford et al. 2021)
        pad      the whole picture, centred on black (letterbox, as openpi's `resize_with_pad`)
        stretch  both edges to fit, whatever the proportions (OpenVLA, Octo)
        none     the picture must arrive at that size (LeRobot's ACT)
    values: what the pixels 0 to 255 become
        mean_std          [0, 1], then normalised by the channel statistics `mean` and `std`
        zero_to_one       [0, 1]
        minus_one_to_one  [-1, 1]
    """

    name: str
    # Size of the picture that the policy sees [pixels].
    width: int
    height: int
    resize: Resize = "crop"
    # Pillow's filters, which widen when they shrink a picture (antialiasing).
    interpolation: Interpolation = "bicubic"
    values: Values = "mean_std"
    # Channel statistics of RGB in [0, 1]; CLIP's by default.
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        require(
            min(self.width, self.height) > 0,
            f"camera {self.name!r}: width and height must be positive, got {self.width} and {self.height}",
        )
        require(min(self.std) > 0, f"camera {self.name!r}: std must be positive, got {self.std}")
        require(self.name.isidentifier(), f"camera {self.name!r}: the name must be letters, digits and _")

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of RGB in [0, 1] that make the tensor's values."""
        return {
            "mean_std": (self.mean, self.std),
            "zero_to_one": ((0.0,) * 3, (1.0,) * 3),
            "minus_one_to_one": ((0.5,) * 3, (0.5,) * 3),
        }[self.values]


class Tokenizer(Part, frozen=True):
    """The command's tokenizer: a `tokenizers` JSON file that lies beside the spec."""

    file: str
    # Longest command [tokens], whatever the tokenizer adds included.
    context_length: int
    pad_id: int
    # fixed: shorter commands are padded to `context_length`. longest: nothing is padded, and only requests
    # with equally many tokens share a forward pass, so that no answer depends on its batch-mates.
    padding: Literal["fixed", "longest"] = "fixed"
    # Where the padding goes.
    side: Literal["right", "left"] = "right"
    # The text that is tokenized, with the command in place of `{command}`, and of `{state}`, where it has
    # that, the bins of the normalised state, parted by spaces (pi0.5).
    template: str = "{command}"
    # Bins over [-1, 1] of each dimension of the state.
    state_bins: int = 256
    # Whether the command is stripped, and its underscores and ends of lines become spaces (openpi).
    tidy: bool = False

    def __post_init__(self) -> None:
        require(self.context_length > 0, f"context_length must be positive, got {self.context_length}")
        require(
            self.template.count("{command}") == 1,
            f"template needs '{{command}}' exactly once, got {self.template!r}",
        )
        require(
            self.template.count("{state}") <= 1,
            f"template takes '{{state}}' once at most, got {self.template!r}",
        )
        require(self.state_bins > 0, f"state_bins must be positive, got {self.state_bins}")

    @property
    def reads_state(self) -> bool:
        """Whether the state is part of the text."""
        return "{state}" in self.template
