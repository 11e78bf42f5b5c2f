"""An HTTP server that speaks OpenAI's protocol, over one :class:`specplug.batching.BatchDecoder`.

``specplug serve`` runs it; :func:`specplug.serving.app.create_app` gives the application alone. It
needs the extra ``serve``. docs/SERVING.md says what is supported.
"""
