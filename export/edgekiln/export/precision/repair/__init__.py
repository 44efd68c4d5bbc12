"""What is mended in a graph after its quantizer: pairs and scales that a library does not take, and biases."""
