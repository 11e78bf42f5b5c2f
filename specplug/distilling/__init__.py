"""A draft head that learns a target: from the target's own answers to the user's prompts."""

import specplug.export  # noqa: F401  # refuses, too, where what it needs is missing
from specplug.types import MissingExtraError

try:
    import matplotlib  # noqa: F401  # not to be missed only after hours of training
except ImportError as error:
    raise MissingExtraError(
        f"distilling needs {error.name}: pip install 'specplug[distill]'"
    ) from error
