"""What other tools read: labels of finished runs written in their formats. Their names for things end here."""
