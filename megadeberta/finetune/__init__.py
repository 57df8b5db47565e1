"""Fine-tuning on labelled data: tasks as they are published and tables of one's own, with SiFT."""
