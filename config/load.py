"""From a config file and a command line to one complete, checked config."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from config import default
from config.schema import ConfigError, apply_overrides, problems, set_value, split_overrides

# The published learning rates of the Grassmann group (arXiv 1709.09603, on CIFAR).
_GRASSMANN_RATES = {"SGDG": 0.2, "AdamG": 0.05}
# dataset.dataset_name=imagenet is that of the published penalty code: a folder of photographs, of
# which it always takes random crops; its autoaugment is RandAugment there.
_IMAGENET_AUGMENTATIONS = {"none": "inception", "basic": "inception", "autoaugment": "randaugment"}


def load_config(path: str, overrides: Sequence[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
    """The config of a file with command-line values in it, checked and resolved.

    Args:
        path: a Python file that defines `get_config()`.
        overrides: (dotted key, text) pairs.

    Raises:
        ConfigError: one line for each thing that is wrong.

    Example:
        >>> load_config("config/digits.py", [("gnp.r", "0.1")]).gnp.r
        0.1
    """
    config, wrong = read_config(path, overrides)
    if wrong:
        raise ConfigError("\n".join(wrong))
    return config


def read_config(
    path: str, overrides: Sequence[tuple[str, str]] = ()
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """The config of a file with command-line values in it, and everything that is wrong with it.

    Args:
        path: a Python file that defines `get_config()`.
        overrides: (dotted key, text) pairs.

    Returns:
        The config, resolved where nothing is wrong; a line for each thing that is.

    Raises:
        ConfigError: the file gives no config.

    Example:
        >>> read_config("config/digits.py", [("gnp.r", "-1")])[1]
        ['gnp.r = -1.0: allowed is a number >= 0']
    """
    config, wrong = apply_overrides(_run_file(path), overrides, default.KEYS)
    wrong += problems(config, default.KEYS)
    if not wrong:
        config = _without_other_weight(config, [name for name, _ in overrides])
        wrong += conflicts(config)
    return (config if wrong else resolve(config)), list(dict.fromkeys(wrong))


def _without_other_weight(
    config: ml_collections.ConfigDict, overridden: Sequence[str]
) -> ml_collections.ConfigDict:
    """A command line that sets one of gnp.alpha and gnp.lambda replaces the file's other one."""
    new = config.copy_and_resolve_references()
    if "gnp.lambda" in overridden and "gnp.alpha" not in overridden:
        new.gnp.alpha = 0.0
    if "gnp.alpha" in overridden and "gnp.lambda" not in overridden:
        set_value(new, "gnp.lambda", None)
    return new


def from_flat(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config of a run directory's `config.json`.

    Args:
        values: dotted key -> JSON value. Keys that the run is too old to know get their defaults,
            which stand for what was there before them.

    Raises:
        ConfigError: one line for each thing that is wrong.

    Example:
        >>> from config.schema import flatten
        >>> from_flat(flatten(default.get_config(), default.KEYS)).batch_size
        128
    """
    config = default.get_config()
    known = {key.name for key in default.KEYS}
    wrong = [f"unknown config key {name}" for name in values if name not in known]
    for name in known & set(values):
        set_value(config, name, values[name])
    wrong += problems(config, default.KEYS)
    if wrong:
        raise ConfigError("\n".join(wrong))
    return config


def read_flags(
    values: flags.FlagValues, arguments: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Reads a command line into defined flags.

    Args:
        values: the flags; set in place.
        arguments: without the program's name.

    Returns:
        The (key, text) pairs of `--config.KEY=VALUE`; a line for each word that is neither.

    Raises:
        ConfigError: a flag is unknown or has a value that is not allowed.

    Example:
        >>> read_flags(flags.FlagValues(), ["--config.gnp.r=0.1", "stray"])
        ([('gnp.r', '0.1')], ["'stray' is not a flag; --help shows the usage"])
    """
    rest, overrides, wrong = split_overrides(arguments)
    try:
        positional = values(["gnp", *rest])[1:]
    except flags.Error as error:
        raise ConfigError("\n".join([*wrong, f"{error}; --help shows the usage"])) from error
    wrong += [f"{word!r} is not a flag; --help shows the usage" for word in positional]
    return overrides, wrong


def _run_file(path: str) -> ml_collections.ConfigDict:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"--config={path}: no such file; config/ holds ready ones")
    spec = importlib.util.spec_from_file_location(f"config_file_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config={path}: a Python file (.py) with get_config() is needed")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever a user's file does wrong
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config={path}: {type(error).__name__}: {reason}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"--config={path}: get_config() returned {type(config).__name__}, "
                          "a ConfigDict is needed")  # fmt: skip
    return config


def conflicts(config: ml_collections.ConfigDict) -> list[str]:
    """What is wrong between keys that are each allowed, a line each.

    Example:
        >>> config = default.get_config()
        >>> config.gnp.alpha = 0.8
        >>> conflicts(config)
        ['gnp.alpha = 0.8 with gnp.r = 0: a penalty needs a radius, such as gnp.r = 0.05']
    """
    lines = []
    r, alpha, coefficient = config.gnp.r, config.gnp.alpha, config.gnp["lambda"]
    if coefficient is not None and r == 0 and coefficient > 0:
        lines.append(
            f"gnp.lambda = {coefficient} with gnp.r = 0: a penalty needs a radius, "
            "such as gnp.r = 0.05"
        )
    elif coefficient is not None and alpha != 0 and abs(alpha * r - coefficient) > 1e-9:
        lines.append(
            f"gnp.lambda = {coefficient} and gnp.alpha = {alpha} disagree, as lambda is "
            f"alpha * r = {alpha * r:g}: give one of them"
        )
    elif coefficient is None and alpha > 0 and r == 0:
        lines.append(
            f"gnp.alpha = {alpha} with gnp.r = 0: a penalty needs a radius, such as gnp.r = 0.05"
        )
    lines += _penalty_conflicts(config) + _accumulation_conflicts(config)
    lines += _optimizer_conflicts(config) + _seed_conflicts(config)
    if config.warmup_epochs > config.total_epochs:
        lines.append(
            f"warmup_epochs = {config.warmup_epochs:g} is longer than "
            f"total_epochs = {config.total_epochs}"
        )
    if config.compute_top_5_error_rate and config.loss != "softmax_cross_entropy":
        lines.append(
            f"compute_top_5_error_rate needs loss = softmax_cross_entropy, not {config.loss}"
        )
    if config.record.steps and not config.record.gradients:
        lines.append(
            "record.steps = True with record.gradients = False: set record.gradients to True too"
        )
    subset = config.dataset.subset
    if subset is not None and subset > 1 and subset != int(subset):
        lines.append(
            f"dataset.subset = {subset:g} is neither a share below 1 nor a whole number of examples"
        )
    if config.label_smoothing > 0 and config.loss == "squared_error":
        lines.append(f"label_smoothing = {config.label_smoothing} does not go with squared_error")
    return lines


def _penalty_conflicts(config: ml_collections.ConfigDict) -> list[str]:
    gnp, lines = config.gnp, []
    if gnp.r == 0:
        unused = {"m": None, "where": "all", "reuse": 0}
        lines += [
            f"gnp.{name} = {gnp[name]!r} with gnp.r = 0: there is no penalty to work in"
            for name, off in unused.items()
            if gnp[name] != off
        ]
    if gnp.m is not None and gnp.sync_perturbations:
        lines.append(
            f"gnp.m = {gnp.m} with gnp.sync_perturbations = True: groups with a perturbation of "
            "their own need False"
        )
    elif gnp.m is not None and config.batch_size % gnp.m:
        lines.append(
            f"gnp.m = {gnp.m} does not divide batch_size = {config.batch_size} into whole groups"
        )
    share = config.hybrid_config.p if config.use_hybrid_training else 1
    if gnp.reuse > 0 and (share == 0 or (share == 1 and gnp.every == 1)):
        lines.append(
            f"gnp.reuse = {gnp.reuse} needs penalised steps and others between them: set gnp.every "
            "(LookSAM's is 5), or use_hybrid_training with hybrid_config.p above 0 and below 1"
        )
    return lines


def _accumulation_conflicts(config: ml_collections.ConfigDict) -> list[str]:
    count, lines = config.accumulate_steps, []
    if config.batch_size % count:
        lines.append(
            f"accumulate_steps = {count} does not divide batch_size = {config.batch_size} into "
            "equal micro-batches"
        )
    if config.accumulate_penalty == "micro":
        if count == 1:
            lines.append(
                "accumulate_penalty = 'micro' with accumulate_steps = 1: there is one micro-batch, "
                "the batch"
            )
        if config.gnp.r == 0:
            lines.append(
                "accumulate_penalty = 'micro' with gnp.r = 0: there is no penalty to work in"
            )
    if count > 1 and config.gnp.r > 0 and not config.gnp.sync_perturbations:
        lines.append(
            f"accumulate_steps = {count} with gnp.sync_perturbations = False: groups are computed "
            "one after another already; leave one of them out, or set accumulate_penalty to micro "
            "and gnp.sync_perturbations to True for a perturbation a micro-batch"
        )
    return lines


def _optimizer_conflicts(config: ml_collections.ConfigDict) -> list[str]:
    opt, lines = config.opt, []
    if opt.opt_type not in _GRASSMANN_RATES:
        unused = {"learning_rate_grassmann": None, "grassmann_where": None, "omega": 0.1}
        lines += [
            f"opt.{name} = {opt[name]!r} needs opt.opt_type = SGDG or AdamG, not {opt.opt_type}"
            for name, off in unused.items()
            if opt[name] != off
        ]
    if opt.centralize_at != "gradient" and opt.centralize == "none":
        lines.append(
            f"opt.centralize_at = {opt.centralize_at!r} with opt.centralize = 'none': "
            "set opt.centralize to all or conv"
        )
    return lines


def _seed_conflicts(config: ml_collections.ConfigDict) -> list[str]:
    count, lines = config.num_seeds, []
    hybrid = config.use_hybrid_training and 0 < config.hybrid_config.p < 1
    if count > 1 and hybrid and config.gnp.r > 0:
        lines.append(
            f"num_seeds = {count} with use_hybrid_training = True: each seed penalises other "
            "steps, which cannot be taken at once; train one seed a run"
        )
    for name in ("init_seeds", "seeds"):
        if config[name] + count > 2**32:
            lines.append(
                f"num_seeds = {count} with {name} = {config[name]}: the last seed must be < {2**32}"
            )
    return lines


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy with `gnp.alpha` computed from `gnp.lambda` where that is given.

    Where SGDG or AdamG has no `opt.learning_rate_grassmann`, it gets the published one. The data
    set `imagenet` of the published penalty code becomes an `image_folder` with its augmentation.

    Args:
        config: a config without conflicts.

    Example:
        >>> config = default.get_config()
        >>> config.gnp.r, config.gnp["lambda"] = 0.05, 0.04
        >>> round(resolve(config).gnp.alpha, 3)
        0.8
    """
    new = config.copy_and_resolve_references()
    if new.gnp["lambda"] is not None and new.gnp.r > 0:
        new.gnp.alpha = new.gnp["lambda"] / new.gnp.r
    if new.opt.learning_rate_grassmann is None and new.opt.opt_type in _GRASSMANN_RATES:
        set_value(new, "opt.learning_rate_grassmann", _GRASSMANN_RATES[new.opt.opt_type])
    if new.dataset.dataset_name == "imagenet":
        level = new.dataset.image_level_augmentations
        new.dataset.dataset_name = "image_folder"
        new.dataset.image_level_augmentations = _IMAGENET_AUGMENTATIONS.get(level, level)
    return new
