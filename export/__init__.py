"""From source weights to a bundle: graphs, tokenizer, manifest. Needs the ``export`` extra.

>>> from specplug.export import export_bundle
>>> export_bundle("SmolLM2-135M-Instruct.Q4_1.gguf", "smol.bundle", precision="w8a8")
"""

import os

from specplug.types import MissingExtraError

os.environ.setdefault("TQDM_DISABLE", "1")  # mobius's bars; before it imports tqdm

try:
    import mobius  # noqa: F401
    import onnx_ir  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        f"exporting needs {error.name}: pip install 'specplug[export]'"
    ) from error

from specplug.export.exporter import export_bundle
from specplug.export.planning import Plan, plan_export

__all__ = ["Plan", "export_bundle", "plan_export"]
