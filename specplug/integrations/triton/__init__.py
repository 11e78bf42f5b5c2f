"""Bundles behind NVIDIA Triton Inference Server, through its Python backend.

``specplug export … --triton DIR`` writes a model repository; docs/INTEGRATIONS.md tells of it.
"""

from specplug.integrations.triton.repository import check_repository, write_repository

__all__ = ["check_repository", "write_repository"]
