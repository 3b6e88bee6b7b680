"""The names that config/default.py allows are the ones that the packages know."""

import pytest

import ds_pipeline
import ds_pipeline.augment
import model
import optimizer
from config import default
from gnp.analysis import names
from gnp.analysis.report import groups


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("opt.opt_type", optimizer.OPTIMIZERS),
        ("lr_schedule_type", optimizer.SCHEDULES),
        ("gr_warmup_strategy", optimizer.STRATEGIES),
        ("gnp.method", optimizer.GNP_METHODS),
        ("gnp.where", optimizer.WHERE),
        ("opt.centralize", optimizer.CENTRALIZE),
        ("opt.centralize_at", optimizer.CENTRALIZE_AT),
        ("precision", model.PRECISIONS),
        ("dataset.image_level_augmentations", ds_pipeline.augment.IMAGE_LEVEL),
        ("dataset.batch_level_augmentations", ds_pipeline.augment.BATCH_LEVEL),
    ],
)
def test_names(key, known):
    (kind,) = (each.kind for each in default.KEYS if each.name == key)
    assert set(kind.names) == set(known)


def test_relatives_of_the_penalty():
    assert default.PENALTY_METHODS == optimizer.METHODS
    assert set(groups._RELATIVES) == set(default.RELATIVES)


def test_kinds_of_parameters():
    own = {key.name.removeprefix("l2_by_kind.") for key in default.KEYS if "l2_by_kind" in key.name}
    assert set(default.PARAMETER_KINDS) == set(optimizer.parameters.KINDS) == own


def test_kinds_that_only_their_path_identifies():
    assert names.OWN_FILES == ds_pipeline.OWN_FILES
