"""An engine's layers: how a library tells of them, what each computes in, the share of the MACs that is, the verdict.

``layer.py`` is the noun. ``inspector.py`` and ``rtx_plan.py`` read layers, ``classification.py`` says what one computes
in, ``weighing.py`` weighs all by MACs into an ``EngineAudit`` (``audit.py``), ``verdict.py`` judges that.

May import the runtime and nothing else, so that it runs where an engine is built on its target. Loads no engine.
"""
