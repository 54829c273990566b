"""A Hugging Face decoder seen from one layer, and the lanes that recover texts from its states."""
