"""The claims of moving.md."""

from cibr_book.experiments import moving
from cibr_book.experiments.tables import read_table


def test_claims_compare_the_chosen_weight_with_fine_tuned_clip():
    rows = read_table("moving.csv")
    tests = moving.claim_tests(rows).set_index("claim")
    assert tests["outcome"].value_counts().to_dict() == {"holds": 8, "undecided": 4}
    own = rows[(rows["condition"] == "600 photos") & rows["seed"].between(800, 899)]
    search = 100 * own.filter(regex="^mini/flickr8k/text_to_image_recall").mean(axis=1)
    means = search.groupby([own["method"], own["hyperparameters"], own["beta"]]).mean()
    gains = means["CLIP-averaged"].to_numpy()[:, None] - means["CLIP"].to_numpy()
    claim = tests.loc["search: CLIP-averaged above CLIP", "difference"]
    assert abs(gains - claim).min() < 1e-9
