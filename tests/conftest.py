"""What all tests share: hypothesis asserts no times, which busy machines cannot keep."""

from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.load_profile("default")
