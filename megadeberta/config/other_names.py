"""What other trainers call our settings: of transformers' TrainingArguments, Megatron-LM, nanoGPT and their like."""

from collections.abc import Callable, Sequence

OTHER_NAMES = {
    "optimizer.lr": "learning_rate base_lr max_lr peak_lr",
    "optimizer.beta1": "adam_beta1",
    "optimizer.beta2": "adam_beta2",
    "deepspeed.gradient_clipping": "max_grad_norm grad_clip clip_grad clip_grad_norm gradient_clip_val",
    "deepspeed.train_batch_size": "batch_size global_batch_size total_batch_size",
    "deepspeed.train_micro_batch_size_per_gpu": "per_device_train_batch_size micro_batch_size per_gpu_train_batch_size",
    "deepspeed.gradient_accumulation_steps": "accumulation_steps grad_accum accumulate_grad_batches",
    "deepspeed.bf16.enabled": "use_bf16 bfloat16",
    "deepspeed.fp16.enabled": "use_fp16 float16 half mixed_precision",
    "deepspeed.zero_optimization.stage": "zero_stage zero",
    "training.steps": "max_steps num_steps total_steps train_steps train_iters max_iters epochs num_epochs "
    "num_train_epochs max_epochs train_epochs",
    "training.eval_interval": "eval_steps eval_every eval_iters",
    "training.output_dir": "save_dir out_dir log_dir",
    "training.init_from": "model_name_or_path model_name pretrained pretrained_model from_pretrained load",
    "schedule.name": "lr_scheduler_type lr_scheduler scheduler_type lr_decay_style",
    "schedule.warmup_steps": "warmup_ratio warmup warmup_iters lr_warmup_iters num_warmup_steps",
    "checkpoint.interval": "save_steps save_every save_interval checkpoint_interval",
    "checkpoint.keep_last": "save_total_limit keep_checkpoints",
    "checkpoint.resume": "resume_from_checkpoint auto_resume",
    "logging.interval": "logging_steps log_every log_interval logging_interval",
    "logging.trackers": "report_to loggers",
    "parallel.activation_checkpointing": "gradient_checkpointing recompute",
    "parallel.tensor": "tensor_parallel tensor_parallel_size tensor_model_parallel_size tp tp_size",
    "parallel.pipeline": "pipeline_parallel pipeline_parallel_size pipeline_model_parallel_size pp pp_size",
    "data.sequence_length": "max_seq_length max_seq_len max_length seq_length seq_len block_size context_length",
    "data.folder": "train_file dataset dataset_name data_path data_dir corpus",
    "data.tokenizer": "tokenizer_name tokenizer_path vocab_file",
    "data.loader_workers": "num_workers dataloader_num_workers workers",
    "model.num_hidden_layers": "num_layers n_layers n_layer layers depth encoder_layers",
    "model.num_attention_heads": "num_heads n_heads n_head heads",
    "model.hidden_size": "d_model dim n_embd embed_dim width hidden_dim",
    "model.intermediate_size": "d_ff ffn_dim ffn_hidden_size feed_forward_size",
    "model.hidden_dropout_prob": "dropout",
    "model.max_position_embeddings": "max_positions n_positions",
    "objective.mask_rate": "mlm_probability mask_prob masking_rate mlm_prob mask_ratio",
}
"""Ours by dotted name -> theirs, of which none is one of ours."""

_OURS = {theirs: ours for ours, names in OTHER_NAMES.items() for theirs in names.split()}


def name_of_ours(theirs: str) -> str | None:
    """The dotted name of the setting that others call so: ``learning_rate`` is ``optimizer.lr``."""
    return _OURS.get(theirs.lower().replace("-", "_"))


OTHER_OPTIONS = {
    "gpus num_gpus n_gpus nproc nproc_per_node np": "`megadeberta launch` has --ranks",
    "nodes nnodes num_nodes": "several machines: `megadeberta launch --hostfile` or --slurm",
    "resume": "the same command resumes by itself",
    "config config_file": "the recipe is an argument without a name",
    "device cuda no_cuda": "the GPUs of CUDA_VISIBLE_DEVICES are used, without one the CPU",
    "output output_dir out": "the folder is given as --set training.output_dir=FOLDER",
}
"""Options of other launchers and trainers, and what to do here."""


def option_of_ours(theirs: str, settings: Callable[[str], Sequence[str]]) -> str | None:
    """What to do instead of giving a training an option of this name: ``--nproc-per-node``.

    Args:
        settings: dotted names of the settings whose last part is a name.
    """
    bare = theirs.strip("-").replace("-", "_")
    if found := next((ours for names, ours in OTHER_OPTIONS.items() if bare in names.split()), None):
        return found
    setting = name_of_ours(bare) or next(iter(settings(bare)), None)
    return None if setting is None else f"a setting of the recipe is given as --set {setting}=VALUE"
