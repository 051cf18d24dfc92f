"""What other tools call a setting, and what it is here."""

from __future__ import annotations

_ELSEWHERE = {
    "model": ("arch_name", "backbone", "base_model", "checkpoint", "network", "pretrained", "weights"),
    "budget": ("max_time", "time", "time_limit", "time_limit_seconds", "timeout"),
    "out": ("exp_name", "name", "output", "output_dir", "project", "save_dir"),
    "epochs": ("max_epochs", "n_epochs", "num_epochs", "num_train_epochs"),
    "image_size": ("img_size", "imgsz", "input_size", "resolution", "size"),
    "batch_size": ("batch", "bs", "per_device_train_batch_size", "train_batch_size"),
    "learning_rate": ("base_lr", "lr", "lr0", "max_lr"),
    "weight_decay": ("wd",),
    "freeze": ("freeze_layers", "frozen", "unfreeze"),
    "label_smoothing": ("smoothing",),
    "dropout": ("drop", "drop_rate"),
    "drop_path": ("drop_path_rate", "stochastic_depth"),
    "balance": ("class_weight", "class_weights", "oversample", "weighted_sampler"),
    "average": ("ema", "model_ema"),
    "augment": ("aa", "augmentation", "augmentations", "auto_augment", "autoaugment"),
    "flip": ("fliplr", "hflip"),
    "val_fraction": ("val_split", "valid_pct", "validation_split"),
    "test_fraction": ("test_size", "test_split"),
    "precision": ("amp", "bf16", "dtype", "fp16", "half", "mixed_precision"),
    "device": ("accelerator", "cuda", "gpu", "gpus"),
    "workers": ("dataloader_num_workers", "num_workers"),
    "seed": ("random_seed", "random_state"),
}
_NEEDLESS = {
    "the classes are those of the data": ("class_names", "classes", "nb_classes", "num_classes", "num_labels"),
    "images are prepared as the pretrained network expects it": (
        "mean", "normalization", "normalize", "processing_class", "std", "tokenizer", "transform", "transforms",
    ),
    "all scores are taken, and reported with their intervals": (
        "compute_metrics", "eval_metric", "metric", "metrics", "validation_metric",
    ),
    "cross-entropy is the loss, of several classes an image one for each": (
        "criterion", "loss", "loss_fn", "loss_func", "loss_function",
    ),
    "folders train, val and test in one folder, or a column split in a table, say which images are for what": (
        "eval_dataset", "test_data", "train_data", "train_dataset", "tuning_data", "val", "val_data", "val_dataset", "val_dir",
        "valid", "validation_data",
    ),
    "a watcher is told of all there is to follow; TensorBoard files are written, and MLflow is told where it is installed": (
        "callbacks", "cbs", "logger", "report_to", "tracker", "wandb",
    ),
    "the whole of it follows from budget and method": ("preset", "presets"),
    "what goes on is told in a notebook and on the command line; with --quiet, or watcher=None, it is not": (
        "disable_tqdm", "enable_progress_bar", "progress", "verbose", "verbosity",
    ),
    "AdamW is the optimiser of all methods": ("momentum", "opt", "optim", "optimizer"),
    "the rate rises, then falls to zero exactly at the end": (
        "cos_lr", "lr_scheduler", "lr_scheduler_type", "sched", "scheduler", "warmup", "warmup_epochs", "warmup_steps",
    ),
    "the weights' average at the end is kept, or an epoch that is clearly better on validation": (
        "early_stopping", "patience", "save_best",
    ),
    "the same command with the same out goes on where a run stopped": ("resume", "resume_from_checkpoint"),
}  # fmt: skip
_VERBS = {
    "fit": ("train", "tune", "finetune", "fine_tune", "learn", "run", "fit_one_cycle"),
    "predict": ("infer", "inference", "classify", "test", "pipeline"),
    "evaluate": ("eval", "val", "validate", "score"),
    "audit": ("check", "clean", "inspect", "lint"),
    "open_run": ("from_pretrained", "load", "load_learner", "load_model", "load_run", "open"),
}


def verb_elsewhere(word: str) -> str:
    """The verb that other tools call so; "" where none is."""
    word = word.replace("-", "_").lower()
    return next((verb for verb, others in _VERBS.items() if word in others), "")


def known_elsewhere(word: str, *, option: bool = False) -> str:
    """What a setting of another tool is here, as a clause; "" for a word that none has. option: as the command line says it."""
    word = word.lstrip("-").replace("-", "_").lower()
    here = next((name for name, words in _ELSEWHERE.items() if word in words), None)
    if here is not None:
        return f"here it is {'--' + here.replace('_', '-') if option else here}"
    return next((why for why, words in _NEEDLESS.items() if word in words), "")
