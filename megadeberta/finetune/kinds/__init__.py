"""The kinds of tasks: for each, transformers' class, how rows become tensors and outputs predictions."""
