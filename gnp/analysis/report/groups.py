"""Runs that differ in their seeds alone are a group; its name says in words what it trained."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from config import default
from gnp.analysis.names import OWN_FILES, dataset_title
from gnp.analysis.report.runs import Run

SEEDS = ("init_seeds", "seeds")
_OPTIMIZERS = {"SGDG": "SGD-G", "AdamG": "Adam-G"}
# The papers' names of gnp.method.
_RELATIVES = {
    "sam": "SAM", "asam": "ASAM", "sam_on": "SAM-ON", "wsam": "WSAM", "gsam": "GSAM",
    "stable_sam": "StableSAM", "friendly_sam": "F-SAM", "vasso": "VaSSO",
    "unnormalized_sam": "USAM", "momentum_sam": "MSAM", "cr_sam": "CR-SAM", "gam": "GAM",
    "random_weight_perturbation": "RWP", "functional_sam": "functional SAM",
}  # fmt: skip


class Group(NamedTuple):
    """Runs with one config but for their seeds.

    Attributes:
        name: unlike that of any other group.
        config: what they share; dotted key -> JSON value.
        runs: at least one, by seed.
    """

    name: str
    config: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that are at their end."""
        return tuple(run for run in self.runs if run.is_finished)

    @property
    def measured(self) -> tuple[Run, ...]:
        """The runs that its numbers are of: those at their end, or all while there are none."""
        return self.finished or self.runs

    @property
    def is_plain(self) -> bool:
        """True where no method of this project takes part."""
        return (
            not _is_perturbed(self.config)
            and self.config["opt.centralize"] == "none"
            and self.config["opt.opt_type"] not in _OPTIMIZERS
        )


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Return the groups, in the order in which their first runs come."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(shared_config(run.config), sort_keys=True), []).append(run)
    members = [
        sorted(each, key=lambda run: [str(run.config[name]).zfill(12) for name in SEEDS])
        for each in found.values()
    ]
    configs = [shared_config(each[0].config) for each in members]
    return [
        Group(name, config, tuple(each))
        for name, config, each in zip(names(configs), configs, members, strict=True)
    ]


def shared_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the seeds and the keys that results do not depend on."""
    left_out = {*SEEDS, *default.FREE_KEYS}
    if config.get("dataset.dataset_name") in OWN_FILES:  # only the path says which data these are
        left_out -= {"dataset.data_dir"}
    return {name: _plain(value) for name, value in config.items() if name not in left_out}


def _plain(value: Any) -> Any:
    """Make 2000.0 2000, and a tuple a list: a config file and a command line may differ there."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same in all, sorted."""
    every = sorted({name for config in configs for name in config})
    return [name for name in every if any(c.get(name) != configs[0].get(name) for c in configs)]


def names(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name each config: data set and model where they differ, method, other keys at need.

    Args:
        configs: no two alike.
    """
    different = differing_keys(configs)
    several = "opt.opt_type" in different
    titles = [data_of(config) for config in configs]
    first = []
    for config, title in zip(configs, titles, strict=True):
        words = [title] * (len(set(titles)) > 1)
        words += [str(config["model.model_name"])] * ("model.model_name" in different)
        first.append(" · ".join([*words, method(config, with_optimizer=several)]))
    found = list(first)
    for name in set(first):
        alike = [i for i, each in enumerate(first) if each == name]
        if len(alike) > 1:
            keys = differing_keys([configs[i] for i in alike])
            for i in alike:
                found[i] = " · ".join([name, *(f"{k}={show(configs[i].get(k))}" for k in keys)])
    return found


def data_of(config: Mapping[str, Any]) -> str:
    """Return the title of a config's data set."""
    title = dataset_title(str(config["dataset.dataset_name"]), config.get("dataset.data_dir"))
    if config["dataset.dataset_name"] == "forecast":
        return f"{title}, horizon {config['dataset.horizon']}"
    return title


def show(value: Any) -> str:
    """Write a config value as a person does.

    Example:
        >>> show(None), show(True), show([1, 2]), show(0.1), show({"nesterov": False})
        ('none', 'True', '1, 2', '0.1', 'nesterov=False')
    """
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={show(each)}" for name, each in value.items()) or "{}"
    return str(value)


def method(config: Mapping[str, Any], with_optimizer: bool = True) -> str:
    """Say in words what a config trains with.

    Args:
        config: complete.
        with_optimizer: name the optimizer also where a method stands beside it.

    Example:
        >>> config = {key.name: key.default for key in default.KEYS}
        >>> method(config), method({**config, "gnp.r": 0.05, "gnp.alpha": 0.8})
        ('Momentum', 'Momentum + GNP r=0.05 α=0.8')
        >>> method({**config, "opt.opt_type": "SGDG", "opt.centralize": "all"}, False)
        'SGD-G + GC'
        >>> vasso = {**config, "gnp.r": 0.05, "gnp.method": "vasso", "gnp.r_by_kind.bias": 0.0}
        >>> method({**vasso, "gnp.every": 2}, False)
        'VaSSO r=0.05 r=0 of biases every 2nd step'
    """
    kind = config["opt.opt_type"]
    base = _OPTIMIZERS.get(kind, kind)
    parts = [part for part in (_penalty(config), _centralization(config)) if part]
    if with_optimizer or kind in _OPTIMIZERS or not parts:
        parts.insert(0, base)
    return " + ".join(parts)


def _weight(config: Mapping[str, Any]) -> float:
    """Return alpha at a penalized step, also where the config has lambda = alpha * r instead."""
    coefficient = config.get("gnp.lambda")
    radius = config["gnp.r"]
    alpha = float(coefficient / radius if coefficient and radius else config["gnp.alpha"])
    return alpha * config["gnp.every"] if config["gnp.every_scales_alpha"] else alpha


def _is_perturbed(config: Mapping[str, Any]) -> bool:
    has_weight = config["gnp.method"] in _RELATIVES or _weight(config) > 0
    return config["gnp.r"] > 0 and has_weight


def _centralization(config: Mapping[str, Any]) -> str:
    where = {"none": "", "all": "GC", "conv": "GC of convolutions"}.get(
        config["opt.centralize"], f"GC {config['opt.centralize']}"
    )
    at = config["opt.centralize_at"]
    return f"{where} of the {at}" if where and at != "gradient" else where


def _penalty(config: Mapping[str, Any]) -> str:
    radius, weight = config["gnp.r"], _weight(config)
    if not _is_perturbed(config):
        return ""
    every, where = config["gnp.every"], config["gnp.where"]
    adaptive, relative = bool(config["gnp.adaptive"]), _RELATIVES.get(config["gnp.method"])
    own = [
        f"{symbol}={config[key]:g} of {what}"
        for symbol, name in (("r", "gnp.r_by_kind"), ("α", "gnp.alpha_by_kind"))
        for kind, what in default.PARAMETER_KINDS.items()
        if config[key := f"{name}.{kind}"] is not None
    ]
    has_one_weight = not any(each.startswith("α") for each in own)
    sam = weight == 1 and has_one_weight and not config["gnp.norm_perturbations"]
    if relative:
        name = f"adaptive {relative}" if adaptive else relative
    else:
        name = {(True, True): "ASAM", (True, False): "SAM", (False, True): "adaptive GNP"}.get(
            (sam, adaptive), "GNP"
        )
    words = [f"Look{name}" if config["gnp.reuse"] else name, f"r={radius:g}"]
    words += [] if sam or relative else [f"α={weight:g}"]
    words += own
    words += [f"{key}={show(value)}" for key, value in config["gnp.method_params"].items()]
    words += [f"k={every}" if config["gnp.reuse"] else _every(every)] * (every > 1)
    words += [f"hybrid p={config['hybrid_config.p']:g}"] * bool(config["use_hybrid_training"])
    words += [f"of {where}"] * (where != "all")
    words += ["normalized"] * bool(config["gnp.norm_perturbations"])
    words += ["exact"] * (config["gnp.method"] == "hvp")
    share, tail = config["gnp.ascent_share"], config["gnp.tail_epochs"]
    words += [f"from {show(share)} of the batch"] * (share < 1)
    words += [f"in the last {show(tail)} epochs"] * (tail is not None)
    words += ["where the norm is unusual"] * (config["gnp.unusual_norm"] is not None)
    warmup = config["gr_warmup_strategy"]
    words += [f"{warmup} warmup"] * (warmup != "none")
    return " ".join(words)


def _every(count: int) -> str:
    """Return "every 2nd step"."""
    teen = count % 100 in (11, 12, 13)
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
    return f"every {count}{ending} step"
