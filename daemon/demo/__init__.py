"""The main job end to end: ingest documents, restart the daemon, answer questions three ways, and compare.

``corpus`` has the text and the questions, ``daemon_process`` runs a real daemon as a process of its own, ``run`` does
the job, ``result`` says what came of it, ``plot`` draws it. The command is ``daemon/cli/demo.py``.
"""
