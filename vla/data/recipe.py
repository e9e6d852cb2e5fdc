"""What is learned from: one data set, or several with their weights, mapped to common names."""

from pathlib import Path

import msgspec

from vla.data.episodes import DataError
from vla.data.mirror import Mirror


class Ingredient(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One data set of a mixture."""

    # Its folder; a relative one is beside the recipe.
    path: str
    # Its share of the samples, relative to the others'.
    weight: float = 1.0
    # Common name -> this data set's name. What is not named keeps its own name.
    cameras: dict[str, str] = {}
    state: dict[str, str] = {}
    action: dict[str, str] = {}
    # Rate of RLDS, which does not say it [Hz].
    control_hz: float | None = None
    # How its samples are mirrored; none: they are not.
    mirror: Mirror | None = None


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mixture, as its JSON file has it."""

    datasets: tuple[Ingredient, ...]
    # Common names, in the policy's order; empty: all that the data sets have, in the order of their first
    # appearance. A data set that lacks one has it masked.
    cameras: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    action: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.datasets:
            raise DataError("a mixture needs one data set at least")
        for each in self.datasets:
            if not each.weight > 0:
                raise DataError(f"{each.path}: the weight must be positive, got {each.weight}")


def read_recipe(path: Path) -> Recipe:
    """Read a mixture's file, or take a folder for a mixture of one.

    Raises:
        DataError: the file is missing or malformed.
    """
    if path.is_dir():
        return Recipe(datasets=(Ingredient(path=str(path.absolute())),))
    try:
        recipe = msgspec.json.decode(path.read_bytes(), type=Recipe)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: {error}") from error
    here = path.absolute().parent
    datasets = tuple(msgspec.structs.replace(each, path=str(here / each.path)) for each in recipe.datasets)
    return msgspec.structs.replace(recipe, datasets=datasets)
