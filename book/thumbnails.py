"""Make the few Flickr8k thumbnails that the book shows: `CIBR_DATA=... python book/thumbnails.py`.

They are written to book/thumbnails as a folder of images with metadata.csv, which the book then
reads like any folder of pairs. The photos are Flickr8k's (Hodosh et al. 2013), for research use.
"""

import csv
from pathlib import Path

from cibr import load_pairs

FOLDER = Path(__file__).resolve().parent / "thumbnails" / "test"
SHOWN = (953, 10, 245, 310, 522, 701)  # of the test photos
SIDE = 120  # pixels

if __name__ == "__main__":
    pairs = load_pairs("flickr8k", "test")
    rows = []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for i in SHOWN:
        file = FOLDER / f"{pairs.keys[i].split('/')[-1]}.jpg"
        pairs.image(i).resize((SIDE, SIDE)).save(file, quality=80)
        rows += [(file.name, caption) for caption in pairs.captions[i]]
    with (FOLDER / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("file_name", "text"), *rows])
