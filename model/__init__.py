"""Flax models and their registry: names to modules called as `module(x, train)`."""

from model import (
    cait,
    cifar_resnet,
    cpu,
    evolution,
    forecasting,
    perceptron,
    pyramidnet,
    resnet,
    shake_shake,
    small,
    swin,
    vgg,
    vit,
    wide_resnet,
)
from model.cpu import compiler_options
from model.describe import Layer, describe
from model.pretrained import PretrainedError, Report, load_pretrained, to_pytorch
from model.registry import (
    PRECISIONS,
    ModelError,
    build_model,
    get_model,
    model_names,
    register,
)

__all__ = [
    "PRECISIONS",
    "Layer",
    "ModelError",
    "PretrainedError",
    "Report",
    "build_model",
    "cait",
    "cifar_resnet",
    "compiler_options",
    "cpu",
    "describe",
    "evolution",
    "forecasting",
    "get_model",
    "load_pretrained",
    "model_names",
    "perceptron",
    "pyramidnet",
    "register",
    "resnet",
    "shake_shake",
    "small",
    "swin",
    "to_pytorch",
    "vgg",
    "vit",
    "wide_resnet",
]
