"""Keys that are given without a config file."""

import pytest

from gnp.main.command_line import UsageError, parse

EVAL = ("--mode=eval", "--working_dir=runs/x")


def test_eval_takes_keys_that_results_do_not_depend_on():
    line = parse([*EVAL, "--config.dataset.data_dir=moved"])
    assert line is not None and line.config is None
    assert line.overrides == (("dataset.data_dir", "moved"),)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*EVAL, "--config.batch_size=3"], "only retrain, dataset.data_dir"),
        ([*EVAL, "--config.dataset.workers=many"], "dataset.workers = 'many'"),
        ([*EVAL, "--config.nothing=1"], "unknown config key nothing"),
        (["--working_dir=x", "--config.batch_size=3"], "batch_size needs --config=FILE"),
    ],
)
def test_others_need_a_file(words, said):
    with pytest.raises(UsageError) as raised:
        parse(words)
    assert said in str(raised.value)
