"""What the YAML file beside this one names: the harness looks for it here."""

from invert_fast.integrations.lm_eval import Leakage

__all__ = ["Leakage"]
