"""The version of the package, read by the build and by ``sb3_attn.__version__``."""

__version__ = "0.1.0"
