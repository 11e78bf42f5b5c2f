"""Speculation for ``model.generate`` of transformers, by one argument.

>>> from specplug.integrations.transformers import speculate
>>> model.generate(**inputs, max_new_tokens=64, custom_generate=speculate())
"""

from specplug.types import MissingExtraError

try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        "specplug.integrations.transformers needs torch and transformers: "
        "pip install 'specplug[torch]'"
    ) from error

from specplug.integrations.transformers.hook import Speculate, speculate

__all__ = ["Speculate", "speculate"]
