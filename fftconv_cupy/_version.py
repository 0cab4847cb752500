"""The version, in a module without imports: the build and the cache key read it from here."""

__version__ = "0.1.0"
