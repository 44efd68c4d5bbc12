"""What each layer of an engine takes, by its library's own profiler, and what differs between two engines.

``profile.py`` has the nouns. ``onnxruntime.py``, ``openvino.py`` and ``tensorrt.py`` ask a library, each in a process
and a session of its own, so that no engine that is timed is ever slowed by a profiler; ``profiling.py`` chooses among
them. The layer itself is the one that audits read: ``engine_layers/layer.py``.
"""
