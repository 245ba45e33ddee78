"""Moves to `cibr.models.features`."""

from cibr.models.features import *  # noqa: F403
from cibr.models.features import Batch, Digests, Inputs, digest_model, embed_pairs, encode_images, encode_texts, prepare  # noqa
