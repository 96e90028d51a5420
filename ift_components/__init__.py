"""Instruction-free tuning of medical vision-language models, as an extension of torchtune."""

from importlib.metadata import version

__version__ = version("instruction-free-tuning")
