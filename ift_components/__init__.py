"""Instruction-free tuning of vision-language models: the parts that the recipes are wired from."""

from importlib.metadata import version

__version__ = version("instruction-free-tuning")
