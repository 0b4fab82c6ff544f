"""Property tests of this room have no deadline: they share their cores with other work."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
