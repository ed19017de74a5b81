"""Models of the package transformers, where it is installed: small ones, with random weights, and padding."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import secateur as sc
from secateur.runtime import Engine
from secateur.runtime import compile as compile_model

transformers: Any = pytest.importorskip("transformers")

TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
SMALL = {"embedding_size": 16}
CAUSAL = {"num_key_value_heads": 2, "use_cache": False}
SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
TEXTS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {},
    "MPNet": {},
    "DebertaV2": {},
    "Electra": SMALL,
    "Albert": SMALL,
    "ModernBert": SPECIAL,
    "Llama": CAUSAL,
    "Qwen2": CAUSAL,
    "Mistral": {**CAUSAL, "sliding_window": 4},
    "Gemma2": {**CAUSAL, "head_dim": 8},
    "Phi3": {**CAUSAL, "pad_token_id": 0},
    "GPTNeoX": {"use_cache": False},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False},
    "Bloom": {"n_layer": 2, "n_head": 4, "use_cache": False},
    "MobileBert": {"embedding_size": 16, "intra_bottleneck_size": 16},
    "SqueezeBert": {"embedding_size": 32},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "use_cache": False},
}

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
PYRAMID = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
HEADS = {**PYRAMID, "num_attention_heads": [1, 2, 2, 4]}
IMAGES: dict[str, dict[str, Any]] = {
    "ViT": VIT,
    "DeiT": VIT,
    "Swin": {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
    | {"window_size": 4},
    "ConvNext": PYRAMID,
    "ConvNextV2": PYRAMID,
    "ResNet": {**PYRAMID, "embedding_size": 16, "layer_type": "basic"},
    "RegNet": {**PYRAMID, "embedding_size": 16, "groups_width": 8},
    "Bit": {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1], "num_groups": 8},
    "MobileNetV1": {"depth_multiplier": 0.25},
    "MobileNetV2": {"depth_multiplier": 0.35},
    "PoolFormer": PYRAMID,
    "PvtV2": {**HEADS, "image_size": 64},
    "FocalNet": {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 2, 1]},
    "Levit": {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 2, 4]}
    | {"depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    "Segformer": {**HEADS, "hidden_sizes": [16, 32, 32, 64], "decoder_hidden_size": 32},
}


HEADS_OF = {"Segformer": "SemanticSegmentation"}
PAIRS: dict[str, dict[str, Any]] = {
    "T5": {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    "Bart": {"vocab_size": 60, "d_model": 32, "max_position_embeddings": 40}
    | {f"{part}_layers": 2 for part in ("encoder", "decoder")}
    | {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
    | {f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
}


def made(name: str, kind: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, name + kind)(config).eval()


def padded_words() -> dict[str, Tensor]:
    ids, mask = torch.randint(5, 60, (3, 10)), torch.ones(3, 10, dtype=torch.int64)
    ids[0, 7:], ids[2, 1:], mask[0, 7:], mask[2, 1:] = 0, 0, 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def error_of(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Of the first output, logits or the last layer's, relative to its largest number."""
    engine = Engine(compile_model(model, inputs))
    found = engine(**inputs)
    found = found[0] if isinstance(found, tuple) else found
    with torch.no_grad():
        expected = model(**inputs)[0].numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", TEXTS)
def test_words_with_padding(name: str) -> None:
    assert error_of(made(name, "Model", TEXT | TEXTS[name]), padded_words()) < 1e-4


@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_the_last_word_before_the_padding(name: str) -> None:
    """It is found at run time, and classified."""
    model = made(name, "ForSequenceClassification", {**TEXT, **TEXTS[name], "pad_token_id": 0})
    assert error_of(model, {"input_ids": padded_words()["input_ids"]}) < 1e-4


@pytest.mark.parametrize("name", PAIRS)
def test_from_words_to_words(name: str) -> None:
    options = {**PAIRS[name], "use_cache": False, "decoder_start_token_id": 0}
    inputs = {**padded_words(), "decoder_input_ids": torch.randint(5, 60, (3, 7))}
    assert error_of(made(name, "ForConditionalGeneration", options), inputs) < 1e-4


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    model = made(name, f"For{HEADS_OF.get(name, 'ImageClassification')}", IMAGES[name])
    for parameter in model.parameters():  # some begin at zero, and hide what is before them
        parameter.data += 0.02 * torch.randn_like(parameter)
    size = IMAGES[name].get("image_size", 64)
    assert error_of(model, {"pixel_values": torch.randn(2, 3, size, size)}) < 1e-4


def test_sound() -> None:
    sizes = {
        "conv_dim": [16, 16],
        "conv_stride": [5, 2],
        "conv_kernel": [10, 3],
        "num_feat_extract_layers": 2,
    }
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    model = made("Wav2Vec2", "ForSequenceClassification", {**TEXT, **sizes, **positions})
    assert error_of(model, {"input_values": torch.randn(2, 1000)}) < 1e-4


def test_a_model_is_pruned_with_the_batches_of_a_loader() -> None:
    """Cut with distillation steps, trained with its teacher, and compiled; nothing is wrapped."""
    torch.manual_seed(0)
    rows = [
        {
            "input_ids": ids,
            "attention_mask": (torch.arange(12) < 6 + len(ids) // 4).long(),
            "labels": int(ids[0] % 3),
        }
        for ids in torch.randint(5, 60, (32, 12))
    ]
    loader = DataLoader(rows, batch_size=8)  # pyright: ignore[reportArgumentType]
    student = made("Bert", "ForSequenceClassification", {**TEXT, "num_labels": 3})
    teacher = copy.deepcopy(student)
    recovery = sc.CalibrationRecovery(steps=2, final_steps=4)
    scope = sc.Global(min_density=0.05)
    how: Any = {"sparsity": 0.7, "stages": 2, "scope": scope, "recovery": recovery}
    masks = sc.cut(student, loader, sc.TeacherFisher(teacher), **how)
    recipe = sc.Recovery(epochs=1, kd_weight=0.5)
    (epoch,) = sc.fit(student, loader, recipe, masks=masks, teacher=teacher)
    assert np.isfinite(epoch.loss)
    assert masks.sparsity == pytest.approx(0.7, abs=1e-3)
    masks.check(student)
    inputs = {name: tensor for name, tensor in next(iter(loader)).items() if name != "labels"}
    assert error_of(student.eval(), inputs) < 1e-4
