"""Shared by the tests of the optimizer: a config of plain namespaces."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def make_config() -> Callable[..., SimpleNamespace]:
    """Return the maker of a small run's config; overrides are keys as on the command line."""

    def make(**overrides: Any) -> SimpleNamespace:
        config = SimpleNamespace(
            seeds=0,
            base_lr=0.1,
            total_epochs=3,
            warmup_epochs=0.0,
            lr_schedule_type="cosine",
            lr_schedule_params=SimpleNamespace(
                boundaries=(), factor=0.1, rate=0.9, decay=0.0, period=2
            ),
            gradient_clipping=0.0,
            no_weight_decay_on_bn=False,
            gr_warmup_strategy="none",
            use_hybrid_training=False,
            hybrid_config=SimpleNamespace(p=0.0),
            gnp=SimpleNamespace(
                r=0.1,
                alpha=0.8,
                norm_perturbations=False,
                every=1,
                warmup_epochs=None,
                adaptive=False,
                method="finite_difference",
                where="all",
                reuse=0.0,
                r_by_kind=SimpleNamespace(weight=None, bias=None, scale=None, offset=None),
                alpha_by_kind=SimpleNamespace(weight=None, bias=None, scale=None, offset=None),
            ),
            l2_regularization=0.0,
            l2_by_kind=SimpleNamespace(weight=None, bias=None, scale=None, offset=None),
            opt=SimpleNamespace(
                opt_type="SGD",
                opt_params={},
                learning_rate_grassmann=0.2,
                grassmann_where=None,
                centralize="none",
                centralize_at="gradient",
            ),
            record=SimpleNamespace(gradients=False),
        )
        for path, value in overrides.items():
            *folders, name = path.split(".")
            node = config
            for folder in folders:
                node = getattr(node, folder)
            assert hasattr(node, name), path
            setattr(node, name, value)
        return config

    return make
