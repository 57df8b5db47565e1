"""Pipeline parallelism: where to cut, what a stage is, what passes between two of them."""
