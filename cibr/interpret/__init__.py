"""What a model keeps and where it looks: neighbours, the shape of the space, probes with intervals, attribution.

`neighbours` tells what lies beside what and which answers changed, `geometry` the gap between modalities and what
of each factor can be read, `attribution` where a text finds its picture, `checks` whether such a map can be
trusted, `cases` makes the pictures to ask with.
"""

from cibr.interpret.attribution import (
    bottleneck_maps,
    enlarge,
    gradient_maps,
    image_encoder,
    occlusion_maps,
    split_image_tower,
)
from cibr.interpret.cases import MarkedLetters, marked_letters, varied_glyphs
from cibr.interpret.checks import deletion_curve, map_agreement, scrambled, share_inside
from cibr.interpret.geometry import (
    closed_gap,
    effective_dimension,
    factor_codes,
    factor_information,
    gap_share,
    gap_table,
    resampled,
)
from cibr.interpret.neighbours import (
    answer_changes,
    embedding_map,
    margins,
    nearest_items,
    neighbour_agreement,
    wrong_name_kinds,
)

__all__ = [
    "MarkedLetters",
    "answer_changes",
    "bottleneck_maps",
    "closed_gap",
    "deletion_curve",
    "effective_dimension",
    "embedding_map",
    "enlarge",
    "factor_codes",
    "factor_information",
    "gap_share",
    "gap_table",
    "gradient_maps",
    "image_encoder",
    "map_agreement",
    "margins",
    "marked_letters",
    "nearest_items",
    "neighbour_agreement",
    "occlusion_maps",
    "resampled",
    "scrambled",
    "share_inside",
    "split_image_tower",
    "varied_glyphs",
    "wrong_name_kinds",
]
