"""How ranks share one model: process groups, tensor parallelism, pipelines."""
