"""What touches disk: Arrow in, Arrow out. Imports no model, no Ray; foreign names end in `data.sources`."""
