"""Makes `vla/tabletop/colours.json`: names of colours by the block that each means.

The names are those of CSS and of XKCD's survey, as matplotlib carries them. A name belongs to a block when
its colour's hue is well inside the block's range and strong and light enough, to `absent` when its hue is far
from all of them, and to neither when it is in between or when its words say another colour than its hue.

    python vla/assets/build_colours.py vla/tabletop/colours.json
"""

import colorsys
import json
import sys
from pathlib import Path

from matplotlib.colors import CSS4_COLORS, XKCD_COLORS, to_rgb

# Hues [degrees] that surely are the block's colour; hues that might be; least saturation and value.
RANGES = {
    "red": ((-12, 10), (-28, 22), 0.62, 0.50),
    "green": ((88, 150), (70, 170), 0.45, 0.32),
    "blue": ((205, 246), (185, 262), 0.62, 0.50),
    "yellow": ((47, 63), (38, 76), 0.62, 0.50),
}
# Words that say another colour, or none.
OTHERS = [
    "ish",
    "orange",
    "purple",
    "pink",
    "teal",
    "brown",
    "violet",
    "cyan",
    "turquoise",
    "aqua",
    "magenta",
    "indigo",
    "grey",
    "gray",
    "lilac",
    "lavender",
    "coral",
    "melon",
    "grapefruit",
    "brick",
    "royal",
    "hazel",
    "poo",
    "puke",
    "vomit",
    "piss",
    "diarrhea",
    "pea",
    "dusk",
    "sea",
    "spring",
    "weird",
    "nasty",
    "poison",
    "toxic",
    "off",
    "leaf",
    "dull",
    "baby",
    "radioactive",
    "ugly",
    "algae",
    "windows",
]
# Names of everyday speech that the tables give other hues than people mean, or not at all.
SAID = {
    "red": ["ruby", "cherry", "maroon", "burgundy", "vermilion", "rose red", "reddish", "carmine red"],
    "green": ["lime", "jade", "olive", "mint", "viridian", "lime green", "forest green", "greenish"],
    "blue": ["navy", "navy blue", "azure", "ultramarine", "cerulean", "sky blue", "bluish", "dark blue"],
    "yellow": [
        "golden",
        "canary",
        "sunflower",
        "amber",
        "saffron",
        "yellowish",
        "light yellow",
        "pale yellow",
    ],
}


def main(path: Path) -> None:
    """Write the lists."""
    colours = {name.lower(): value for name, value in CSS4_COLORS.items()}
    colours |= {name.removeprefix("xkcd:"): value for name, value in XKCD_COLORS.items()}
    lists: dict[str, list[str]] = {**{colour: list(names) for colour, names in SAID.items()}, "absent": []}
    said = {name for names in SAID.values() for name in names}
    for name, value in sorted(colours.items()):
        kind = classify(name, str(value))
        if kind and name not in said:
            lists[kind].append(name)
    path.write_text(json.dumps({kind: sorted(names) for kind, names in lists.items()}, indent=1) + "\n")


def classify(name: str, value: str) -> str | None:
    """Return the block that a name means, `absent`, or None where that is not clear."""
    hue, saturation, lightness = colorsys.rgb_to_hsv(*to_rgb(value))
    hue *= 360
    named = [colour for colour in RANGES if colour in name]
    other = any(word in name for word in OTHERS)
    if not name.replace(" ", "").isalpha() or len(name) > 20:
        return None
    for colour, (sure, _, saturated, light) in RANGES.items():
        if _in(hue, sure) and saturation > saturated and lightness > light and not other:
            return colour if named in ([], [colour]) else None
    far = not any(_in(hue, possible) for _, possible, _, _ in RANGES.values()) or saturation < 0.15
    return "absent" if far and not named else None


def _in(hue: float, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= hue <= bounds[1] or bounds[0] <= hue - 360 <= bounds[1]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
