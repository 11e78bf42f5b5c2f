"""The replicas that this process can call. An ingress calls those of one deployment only.

In a module of its own, since Ray sends the router's module to the ingresses by value: what that
keeps, nobody else in the process would see.
"""

from __future__ import annotations

from collections.abc import Mapping

metrics: Mapping[str, str] = {}
"""By name, the latest metrics of each, in Prometheus' text format."""
