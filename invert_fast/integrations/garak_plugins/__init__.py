"""What garak is shown as plugins of its own: see `invert_fast.integrations.garak`."""
