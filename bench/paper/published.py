"""What the paper prints (arXiv 2607.00852, Tables 1–5 and the text of Section 4): GPT-2 on one RTX A6000."""

from invert_fast.figures.published import EXACT_BY_STEPS, OPERATING_POINTS  # noqa: F401, Table 1: K, C

# Table 2: exact match in %, mean similarity, prompts.
ACCURACY = {
    ("fast", "c4"): (35.0, 0.800, 100),
    ("fast", "wikipedia"): (10.0, 0.711, 100),
    ("baseline", "c4"): (66.9, 0.918, 450),
    ("high-accuracy", "c4"): (97.5, 0.994, 200),
}
SECONDS = {  # Table 3: seconds a token
    ("fast", "c4"): 9.73,
    ("fast", "wikipedia"): 11.07,
    ("baseline", "c4"): 15.40,
    ("high-accuracy", "c4"): 27.5,
}
COMPARISON = {  # Tables 4 and 5, first 100 C4 prompts: exact match in %, mean similarity, seconds a token
    "baseline": (73.0, 0.929, 17.8),
    "high-accuracy": (96.0, 0.990, 30.6),
    "official sipit": (100.0, 1.000, 0.65),
}
# Ablations are figures without tables, but for what the text says of them: exact match in %.
ABLATIONS = {("steps", steps): f"{exact:g}" for steps, exact in EXACT_BY_STEPS.items()} | {("candidates", 2000): "66.9"}
ABLATION_BEST = {"lr": "0.05", "metric": "l1", "init": "zeros, token"}
