"""What other tools call a setting, and what it is here."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

_ELSEWHERE = {
    "model": ("arch_name", "backbone", "base_model", "checkpoint", "network", "weights"),
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
    "the data stands first, by itself, as in: burnish fit photos/": (
        "data", "data_dir", "data_path", "dataset", "dataset_dir", "source", "train_dir",
    ),
    "all networks are pretrained but random:NAME": ("pretrained",),
    "an answer is of one view of each image": ("test_time_augmentation", "tta"),
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
# Of the verbs that take a run: option -> what others call it. Then how what stands by itself is said, and what others call that.
_OPTIONS = {
    "predict": {
        "--top": ("k", "top_k", "topk"), "--reject": ("conf", "confidence", "threshold"),
        "--csv": ("out", "output", "output_dir", "results_file", "save", "save_csv", "save_txt"),
    },
    "evaluate": {"--csv": ("out", "output", "results_file")},
    "export": {"--to": ("format", "type"), "--out": ("file", "file_name", "filename", "name", "output")},
}  # fmt: skip
_BY_PLACE = {
    "predict": "burnish predict RUN IMAGES...", "evaluate": "burnish evaluate RUN DATA", "export": "burnish export RUN",
    "explain": "burnish explain RUN IMAGES...", "serve": "burnish serve RUN", "slim": "burnish slim RUN",
    "harden": "burnish harden RUN", "report": "burnish report RUN",
}  # fmt: skip
_PLACED = (
    "checkpoint", "ckpt", "data", "data_dir", "dataset", "image", "images", "input", "model", "model_path", "run", "source",
    "weights",
)  # fmt: skip
_RESULT = {
    "burnish.export(result, to=…) writes it for other programs": (
        "export",
        "save",
        "save_model",
        "to_onnx",
        "push_to_hub",
    ),
    "result.predictor.bundle.classifier() is the network": ("model", "module", "network"),
    "result.folder, which burnish.open_run opens": ("path", "run", "save_dir"),
    "burnish.explain(result, images)": ("explain", "gradcam", "show_results"),
    "result.evaluate(data)": ("evaluate_on", "score", "val", "validate"),
    "result.features(images)": ("embed", "embeddings", "extract_embedding", "forward_features"),
    "result.scores, and .confused() and .mistakes() of result.evaluate(data)": (
        "confusion_matrix",
        "interpret",
        "metrics",
    ),
    "result.classes": ("class_names", "labels", "names", "vocab"),
}
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


def attribute_elsewhere(word: str) -> str:
    """Where a result has what others call so, as a clause; "" where it has nothing of the kind."""
    return next((here for here, words in _RESULT.items() if word in words), "")


def option_elsewhere(verb: str, word: str) -> str:
    """What an option of another tool is with a verb that takes a run, as a clause; "" where it is nothing."""
    word = word.lstrip("-").replace("-", "_").lower()
    if word in _PLACED and verb in _BY_PLACE:
        return f"what is meant stands by itself: {_BY_PLACE[verb]}"
    here = next((option for option, words in _OPTIONS.get(verb, {}).items() if word in words), None)
    return f"here it is {here}" if here else ""


def pair_elsewhere(words: Sequence[str]) -> str:
    """The first word such as epochs=3, as Ultralytics takes its settings, where an option or a path should stand; "" for none."""
    known = {word for some in (*_ELSEWHERE.values(), *_NEEDLESS.values()) for word in some} | {
        *_ELSEWHERE,
        *_PLACED,
        "format",
    }
    for before, word in itertools.pairwise(["", *words]):
        name, divided, _ = word.partition("=")
        if (
            divided
            and name.lower() in known
            and (not before.startswith("-") or "=" in before)
            and not os.path.exists(word)
        ):
            return word
    return ""


def known_elsewhere(word: str, *, option: bool = False) -> str:
    """What a setting of another tool is here, as a clause; "" for a word that none has. option: as the command line says it."""
    word = word.lstrip("-").replace("-", "_").lower()
    here = next((name for name, words in _ELSEWHERE.items() if word in words), None)
    if here is not None:
        return f"here it is {'--' + here.replace('_', '-') if option else here}"
    return next((why for why, words in _NEEDLESS.items() if word in words), "")
