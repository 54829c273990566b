"""The learned inverter of language models (2311.13647): next-token distributions to prompts."""
