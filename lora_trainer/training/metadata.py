"""What a LoRA file says about its training: ``ss_*`` as sd-scripts writes it, and Stability's modelspec 1.0.1."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import dataclass
from typing import Any

from lora_trainer import __version__
from lora_trainer.config.train import TrainConfig
from lora_trainer.core.plain_json import json_text
from lora_trainer.dataset.buckets import bucket_counts
from lora_trainer.dataset.plan import Plan
from lora_trainer.dataset.scan import Dataset
from lora_trainer.model.families import CheckpointInfo
from lora_trainer.network.types import LORA
from lora_trainer.network.types.base import Shape
from lora_trainer.network.types.trainable import TrainableType
from lora_trainer.training.optimizers import optimizer_arguments, warmup_steps


@dataclass(frozen=True)
class Progress:
    """How far the run was when the file was written."""

    epoch: int
    step: int
    started_at: float
    finished_at: float


def training_metadata(
    config: TrainConfig,
    checkpoint: CheckpointInfo,
    dataset: Dataset,
    validation_images: int,
    plan: Plan,
    progress: Progress,
    precision: str,
    clip_skip: int,
    network_type: TrainableType = LORA,
) -> dict[str, str]:
    """All entries of a file's header except the hashes; every value is a string, as the format demands.

    As in sd-scripts, ``dataset`` has the pictures that are learned from, repeats counted, and held-out ones, each
    counted once, are told by their number alone (train_util.py:2045, train_network.py:1010).
    """
    values: dict[str, Any] = {
        **_session(config, progress),
        **_checkpoint(checkpoint, clip_skip),
        **_network(config, network_type),
        **_optimisation(config, plan, precision),
        **_data(config, dataset, validation_images),
    }
    header = {key: value if isinstance(value, str) else str(value) for key, value in values.items()}
    return header | _modelspec(config, checkpoint, clip_skip, progress)


def _session(config: TrainConfig, progress: Progress) -> dict[str, Any]:
    return {
        "ss_output_name": config.name,
        "ss_session_id": int(progress.started_at * 1000) % 2**32,
        "ss_training_started_at": progress.started_at,
        "ss_training_finished_at": progress.finished_at,
        "ss_epoch": progress.epoch,
        "ss_steps": progress.step,
        "ss_training_comment": f"LoRA Train {__version__}",
        "ss_sd_scripts_commit_hash": None,
    }


def _checkpoint(checkpoint: CheckpointInfo, clip_skip: int) -> dict[str, Any]:
    values: dict[str, Any] = {
        "ss_base_model_version": checkpoint.family.base_version,
        "ss_v2": checkpoint.family.is_v2,
        "ss_sd_model_name": checkpoint.name,
        "ss_clip_skip": clip_skip if clip_skip > 1 else None,
    }
    if checkpoint.sha256:
        values["ss_new_sd_model_hash"] = checkpoint.sha256
    if checkpoint.legacy_hash:
        values["ss_sd_model_hash"] = checkpoint.legacy_hash
    if checkpoint.vae:
        values["ss_vae_name"] = checkpoint.vae
    return values


def _network(config: TrainConfig, network_type: TrainableType) -> dict[str, Any]:
    network = config.network
    convolutions = None
    if network.targets == "attention+conv":
        convolutions = Shape(network.conv_rank, network.conv_alpha or network.conv_rank)
    entries = network_type.metadata(Shape(network.rank, network.alpha or float(network.rank)), convolutions)
    return {"ss_network_dropout": network.dropout or None, **entries}


def _optimisation(config: TrainConfig, plan: Plan, precision: str) -> dict[str, Any]:
    training = config.training
    arguments = ",".join(f"{key}={value}" for key, value in optimizer_arguments(config).items())
    return {
        "ss_learning_rate": training.unet_lr,
        "ss_unet_lr": training.unet_lr or None,
        "ss_text_encoder_lr": training.text_lr or None,
        "ss_optimizer": training.optimizer + (f"({arguments})" if arguments else ""),
        "ss_lr_scheduler": training.scheduler,
        "ss_lr_warmup_steps": warmup_steps(config, plan.total_steps),
        "ss_num_epochs": plan.epochs,
        "ss_max_train_steps": plan.total_steps,
        "ss_num_batches_per_epoch": plan.batches_per_epoch,
        "ss_batch_size_per_device": training.batch_size,
        "ss_total_batch_size": training.batch_size * training.accumulate,
        "ss_gradient_accumulation_steps": training.accumulate,
        "ss_gradient_checkpointing": training.checkpointing,
        "ss_mixed_precision": {"fp32": "no"}.get(precision, precision),
        "ss_full_fp16": False,
        "ss_seed": training.seed,
        "ss_noise_offset": training.noise_offset or None,
        "ss_min_snr_gamma": training.min_snr_gamma or None,
        "ss_max_grad_norm": training.max_grad_norm,
        "ss_loss_type": "l2",
        "ss_prior_loss_weight": 1.0,
        "ss_zero_terminal_snr": False,
    }


def _data(config: TrainConfig, dataset: Dataset, validation_images: int) -> dict[str, Any]:
    data = config.data
    resolution = (data.resolution, data.resolution)
    tags = dataset.tag_frequency(data.separator)
    folders = {
        name: {"n_repeats": group[0].repeats, "img_count": len(group)} for name, group in dataset.concepts().items()
    }
    buckets = _bucket_info(dataset)
    common = {
        "is_dreambooth": True,
        "batch_size_per_device": config.training.batch_size,
        "num_train_images": dataset.images,
        "num_reg_images": 0,
        "resolution": list(resolution),
        "enable_bucket": data.buckets,
        "min_bucket_reso": data.bucket_min or None,
        "max_bucket_reso": data.bucket_max or None,
        "tag_frequency": tags,
        "bucket_info": buckets,
        "subsets": [
            {
                "image_dir": name,
                "img_count": len(group),
                "num_repeats": group[0].repeats,
                "keep_tokens": data.keep_tokens,
                "shuffle_caption": data.shuffle,
                "flip_aug": data.flip,
                "color_aug": False,
                "random_crop": False,
                "class_tokens": data.trigger or None,
            }
            for name, group in dataset.concepts().items()
        ],
    }
    return {
        "ss_num_train_images": dataset.images,
        "ss_num_validation_images": validation_images,
        "ss_num_reg_images": 0,
        "ss_resolution": str(resolution),
        "ss_enable_bucket": data.buckets,
        "ss_bucket_no_upscale": not data.upscale,
        "ss_min_bucket_reso": data.bucket_min or None,
        "ss_max_bucket_reso": data.bucket_max or None,
        "ss_bucket_info": json_text(buckets),
        "ss_datasets": json_text([common]),
        "ss_dataset_dirs": json_text(folders),
        "ss_reg_dataset_dirs": json_text({}),
        "ss_tag_frequency": json_text(tags),
        "ss_keep_tokens": data.keep_tokens,
        "ss_shuffle_caption": data.shuffle,
        "ss_flip_aug": data.flip,
        "ss_color_aug": False,
        "ss_random_crop": False,
        "ss_caption_dropout_rate": data.caption_dropout,
        "ss_caption_dropout_every_n_epochs": 0,
        "ss_caption_tag_dropout_rate": 0.0,
        "ss_cache_latents": True,
        "ss_max_token_length": None,
        "ss_face_crop_aug_range": None,
        "ss_lowram": False,
    }


def _bucket_info(dataset: Dataset) -> dict[str, Any]:
    counts = bucket_counts((item.fit, item.repeats) for item in dataset.items)
    errors = [abs(i.size[0] / i.size[1] - i.fit.bucket[0] / i.fit.bucket[1]) for i in dataset.items]
    buckets = {str(n): {"resolution": list(size), "count": count} for n, (size, count) in enumerate(counts.items())}
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors) if errors else 0.0}


def _modelspec(config: TrainConfig, checkpoint: CheckpointInfo, clip_skip: int, progress: Progress) -> dict[str, str]:
    date = datetime.datetime.fromtimestamp(progress.finished_at, datetime.timezone.utc)
    header = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": checkpoint.family.modelspec,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": config.name,
        "modelspec.resolution": f"{config.data.resolution}x{config.data.resolution}",
        "modelspec.date": date.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}[checkpoint.prediction],
    }
    if clip_skip > 1:
        header["modelspec.encoder_layer"] = str(clip_skip)
    if config.data.trigger.strip():
        header["modelspec.trigger_phrase"] = config.data.trigger.strip()
    return header


def sidecar(config: TrainConfig, dataset: Dataset, checkpoint: CheckpointInfo) -> dict[str, Any]:
    """The card's ``.json``: what the WebUI shows and puts into the prompt."""
    tags: Counter[str] = Counter()
    for counts in dataset.tag_frequency(config.data.separator).values():
        tags.update(counts)
    trigger = config.data.trigger.strip() or (tags.most_common(1)[0][0] if tags else "")
    return {
        "description": f"Trained on {checkpoint.name} with {len(dataset.items)} pictures by LoRA Train {__version__}.",
        "sd version": checkpoint.family.name,
        "activation text": trigger,
        "preferred weight": 0.8,
        "negative text": "",
        "notes": "",
    }
