"""What to run: every key with its default and meaning, the rules on keys, a file an experiment."""

from config.load import (
    apply_overrides,
    as_json,
    from_flat,
    load_config,
    on_devices,
    read_config,
    read_flags,
    with_group_size,
    without_removed,
)
from config.schema import ConfigError, flatten

__all__ = [
    "ConfigError",
    "apply_overrides",
    "as_json",
    "flatten",
    "from_flat",
    "load_config",
    "on_devices",
    "read_config",
    "read_flags",
    "with_group_size",
    "without_removed",
]
