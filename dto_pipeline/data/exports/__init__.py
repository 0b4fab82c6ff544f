"""Labels of finished runs in the formats of other tools. Names of those formats are used in here only."""
