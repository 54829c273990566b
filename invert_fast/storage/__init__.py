"""Files in and out, and the cache folder. Knows nothing of models."""
