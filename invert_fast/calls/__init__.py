"""What a call finds in the process and leaves as it was, and whose turn it is."""
