"""The configuration: its schema, validation and command-line flag.

from vaejax.config import check, defaults

config = defaults()  # a ConfigDict: every key with its default
config.steps = 1000
checked = check(config)  # a frozen, typed Config, or InputError
"""

from vaejax.config.check import check, from_saved
from vaejax.config.schema import Config, defaults

__all__ = ["Config", "check", "defaults", "from_saved"]
