"""A small HTTP server and a local page around one bundle: what ``edgekiln serve`` runs.

``engines`` loads and reloads, ``guard`` decides who is let in, ``bodies`` reads what was sent, ``app`` answers,
``metrics`` counts, ``listening`` opens the socket and ends the process well. Several models, versions and a repository
of them are Triton's (``shipping/triton``). Only ``pipeline/cli/serve.py`` imports this, once the extra is known to be
there.
"""
