"""Where lm-evaluation-harness looks for our task: see `invert_fast.integrations.lm_eval`."""
