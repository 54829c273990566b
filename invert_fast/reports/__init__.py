"""What people look at: recoveries, scores and diagnoses in notebooks and tables. Recovered text is hostile here."""
