"""The loop that verifies what strategies propose, the only place where a certificate is given, and what it rests on."""
