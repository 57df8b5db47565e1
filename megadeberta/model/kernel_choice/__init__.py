"""Which attention kernels a run takes, with which tiles: tried at the run's own shapes, agreed by its ranks, cached."""
