"""The only place that imports deepspeed: build, step, schedule, guard, signals."""
