"""Make the figure of captions found for photos: `CIBR_DATA=... CIBR_MODELS=... python
book/photo_search.py`.

Heads on frozen towers are trained on Flickr8k as the search page's CLIP is (a minute on two cores
once the towers' features are cached, a quarter of an hour before). Test photos then search all test
captions, half of them with success. The figure goes to book/images as a small JPEG file: the photos
are Flickr8k's (Hodosh et al. 2013), for research use.
"""

from pathlib import Path

import cibr
from cibr.metrics import retrieval_ranks
from cibr.models.features import embed_pairs, prepare
from cibr_book import plots
from cibr_book.search import trained_heads

FILE = Path(__file__).resolve().parent / "images" / "photos-image-to-text.jpg"
N_PHOTOS, SEED = 6, 3


def main() -> None:
    """Embed the test photos and captions, choose what is shown and draw it."""
    model = trained_heads(0.0)
    plots.set_style()
    pairs = cibr.load_pairs("flickr8k", "test")
    images, texts = embed_pairs(model, prepare(model, pairs, truncate=True))
    of_images, _ = retrieval_ranks(images, texts, pairs.text_to_image())
    shown = plots.pick_evenly(of_images == 0, N_PHOTOS, SEED)
    photos = list(pairs.images(shown))
    captions = [pairs.captions[i] for i in shown]
    similarity = images[shown] @ texts.T
    axes = plots.retrieval_gallery(photos, captions, pairs.texts(), similarity)
    axes[0].figure.savefig(FILE, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    main()
