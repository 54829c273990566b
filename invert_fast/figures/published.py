"""What the paper states of its figures (arXiv 2607.00852, Section 4): GPT-2 small, 10-token C4 prompts."""

OPERATING_POINTS = {"fast": (600, 100), "baseline": (1000, 2000), "high-accuracy": (2000, 10_000)}  # Table 1: K, C
VOCABULARY = 50_257  # of GPT-2: C = 2000 is 4 % of it
EXACT_BY_STEPS = {250: 14.0, 1000: 66.9, 2000: 84.0}  # Figure 3 and Table 2: exact match in %, at C = 2000
LOSS_THRESHOLD = 1e-4
RIGHT, WRONG = 443, 26  # Figure 5: tokens committed rightly and wrongly, of 50 prompts
FIRST_BY = 300  # Figure 5: the median rank of right tokens is down "well before" this step
FLOOR, DECADES = 1e-11, 10  # Figure 6: where right prompts stay, and how far wrong ones are above by the end
SPACED, FAILURES, FAILED_PROMPTS = (
    417,
    542,
    450,
)  # Figure 8: failures of tokens with a space before them; all; of prompts
COMMONEST = (" the", " ,", " and", " of")  # Figure 8
