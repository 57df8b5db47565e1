"""Names of what a run leaves in its output folder beside the checkpoints."""

METRICS_FILE = "metrics.jsonl"
CURVE_FILE = "loss_curve.png"
RECIPE_FILE = "recipe.json"
TENSORBOARD_FOLDER = "tensorboard"
