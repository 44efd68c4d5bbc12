"""A bundle's engine as a model of NVIDIA Triton Inference Server: ``config`` says what it is, ``repository`` writes."""
