"""From images to sounds without a single pair of both: photos of one class, and the class of the sound that is nearest.

The model is a run of photos and captions that was continued on sounds and captions with its text side locked. A photo
is a query where its captions name exactly one class of the sounds; its answer is the nearest sound of the test split.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

import ccaco_cli
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.shards import Split

WORDS = {
    "dog bark": "dog dogs puppy puppies",
    "rooster": "rooster roosters hen hens chicken chickens",
    "sea waves": "sea ocean wave waves surf",
    "baby cry": "baby babies infant",
    "rain": "rain raining rainy",
    "helicopter": "helicopter helicopters",
    "chainsaw": "chainsaw chainsaws",
    "fire crackling": "fire fires campfire bonfire flames",
    "clock tick": "clock clocks",
    "person sneeze": "sneeze sneezes sneezing",
}
"""Class of ESC-10 -> words of captions that name it."""


def classes_of_photos(photos: Split) -> dict[int, str]:
    """Row -> class, of the photos whose captions name exactly one class."""
    classes = {}
    for row in range(len(photos)):
        captions = photos.captions[photos.caption_start[row] : photos.caption_start[row + 1]]
        words = set(re.findall(r"\w+", " ".join(captions).lower()))
        named = [name for name, listed in WORDS.items() if words & set(listed.split())]
        if len(named) == 1:
            classes[row] = named[0]
    return classes


def mean_of_classes(hits: np.ndarray, labels: np.ndarray, least: int, seed: int = 0) -> tuple[float, float, float, int]:
    """The mean share of hits over classes of at least so many photos: (mean, low, high, number of classes).

    The interval is a bootstrap over the photos of each class.
    """
    groups = [hits[labels == name] for name in np.unique(labels) if (labels == name).sum() >= least]
    rng = np.random.default_rng(seed)
    drawn = np.mean([rng.choice(group, (10_000, len(group))).mean(1) for group in groups], 0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.mean([group.mean() for group in groups])), float(low), float(high), len(groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="continued run of audio and text, with its image side")
    parser.add_argument("--photos", type=Path, required=True, help="prepared flickr8k")
    parser.add_argument("--sounds", type=Path, required=True, help="prepared ESC-10")
    parser.add_argument("--split", default="test", help="of the photos")
    parser.add_argument("--least", type=int, default=10, help="photos of a class that counts in the mean of classes")
    options = parser.parse_args()

    model = ccaco_cli.load(options.run)
    photos = shards.open(options.photos, "quick").split(options.split)
    sounds = shards.open(options.sounds, "quick").split("test")
    by_row = classes_of_photos(photos)
    labels = np.array(list(by_row.values()))
    images = model.encode(images=photos.media("image", list(by_row)))
    clips = model.encode(audio=sounds.media("audio", range(len(sounds))))
    names = model.encode(texts=[f"the sound of {name}" for name in sounds.labels])
    heard = np.array(sounds.labels)[sounds.label]
    print(f"{len(images)} photos, {len(clips)} sounds of {len(sounds.labels)} classes, no pair of both\n")
    named = (clips @ names.T).argmax(1) == sounds.label
    print(f"sounds whose nearest class name is theirs: {named.mean():.1%}\n")

    hits = heard[(images @ clips.T).argmax(1)] == labels
    print("| class | photos | nearest sound of the class | 95 % | chance |\n|---|---|---|---|---|")
    for name in (*sounds.labels, "all"):
        chosen = hits if name == "all" else hits[labels == name]
        if not len(chosen):
            continue
        interval = binomtest(int(chosen.sum()), len(chosen)).proportion_ci(method="wilson")
        chance = float(np.mean([(heard == label).mean() for label in (labels if name == "all" else [name])]))
        between = f"{interval.low:.1%} .. {interval.high:.1%}"
        print(f"| {name} | {len(chosen)} | {chosen.mean():.1%} | {between} | {chance:.1%} |")
    mean, low, high, count = mean_of_classes(hits, labels, options.least)
    chance = float(np.mean([(heard == name).mean() for name in sounds.labels]))
    print(f"| mean of {count} classes | | {mean:.1%} | {low:.1%} .. {high:.1%} | {chance:.1%} |")


if __name__ == "__main__":
    main()
