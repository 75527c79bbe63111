"""OpenAI's chat API with documents, before a model of our own (``kvloom serve-model``) or a vLLM (``kvloom proxy``).

Both listen on loopback only, ask for a key, and know documents by name: ``PUT /v1/documents/{name}`` and
``"document_ids": [...]`` in a chat request.
"""
