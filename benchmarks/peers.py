"""What ours is compared with, by name. Torch-free."""

EAGER = "transformers eager"
BERT = "same-size BERT, SDPA"
PACKAGES = {"disentangled-flash": "disentangled_flash", "flashdeberta": "flashdeberta"}
"""Name on PyPI -> name to import. Their kernels need a CUDA GPU."""
