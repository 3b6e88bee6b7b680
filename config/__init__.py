"""Keys of a run with their defaults and meanings, the rules on them, a file an experiment."""

from config.load import apply_overrides as apply_overrides
from config.load import as_json as as_json
from config.load import from_flat as from_flat
from config.load import load_config as load_config
from config.load import on_devices as on_devices
from config.load import read_config as read_config
from config.load import read_flags as read_flags
from config.load import with_group_size as with_group_size
from config.load import without_removed as without_removed
from config.paths import local_path as local_path
from config.schema import ConfigError as ConfigError
