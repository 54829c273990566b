"""Why states do not certify: what may have happened to them, tried on the states themselves, and the option for it."""
