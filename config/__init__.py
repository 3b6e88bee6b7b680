"""What to run: every key with its default and meaning, and one file an experiment."""

from config.load import from_flat, load_config, read_config, read_flags, resolve
from config.schema import ConfigError, apply_overrides, flatten, problems

__all__ = [
    "ConfigError",
    "apply_overrides",
    "flatten",
    "from_flat",
    "load_config",
    "problems",
    "read_config",
    "read_flags",
    "resolve",
]
