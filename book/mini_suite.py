"""CLIP and CIBR on the suite of real photos, five seeds each: `python book/mini_suite.py`.

Reads what `python -m cibr.sweep workflow/flickr8k.yaml` left under runs/ and writes every score of both, with the
paired difference and its 95 % interval over seeds and pictures, to data/results/mini_suite.csv. CIBR is the `vmf`
penalty, the default of `cibr.fit`; its weight was chosen on validation recall in as many trials as CLIP's temperature.
"""

from cibr.evaluate import compare, format_table, read_evaluation
from cibr.paths import project_root
from cibr.sweep import read_plan, run_folder

PLAN = project_root() / "workflow" / "flickr8k.yaml"
RESULTS = project_root() / "data" / "results" / "mini_suite.csv"
MODELS = ("CLIP", "CIBR vMF")


def main() -> None:
    """Compare the two arms seed by seed, save the table and print the main scores."""
    runs = read_plan(PLAN).runs
    evaluations = [
        [
            read_evaluation(run_folder(run), "mini", arm)
            for run in runs
            if run["arm"] == arm
        ]
        for arm in MODELS
    ]
    differences = compare(*evaluations)
    differences.to_csv(RESULTS, index=False, float_format="%.6g")
    main_scores = differences[differences["metric"].str.contains("@1$")]
    print(format_table(main_scores, value="difference").to_string())


if __name__ == "__main__":
    main()
