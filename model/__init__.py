"""Flax models and their registry: names to modules called as `module(x, train)`."""

from model import small, wide_resnet
from model.compiler import compiler_options
from model.describe import Layer, describe
from model.registry import ModelError, build_model, get_model, model_names, register

__all__ = [
    "Layer",
    "ModelError",
    "build_model",
    "compiler_options",
    "describe",
    "get_model",
    "model_names",
    "register",
    "small",
    "wide_resnet",
]
