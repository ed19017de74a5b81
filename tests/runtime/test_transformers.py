"""Models of the package transformers, where it is installed: small ones, with random weights, and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from runtime.models import worst_error
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


class Words(nn.Module):
    """A model of words and their mask: what its last layer gives."""

    def __init__(self, name: str) -> None:
        super().__init__()
        config = getattr(transformers, f"{name}Config")(**TEXT | TEXTS[name])
        self.model = getattr(transformers, f"{name}Model")(config)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


class Pixels(nn.Module):
    """A model of images: its logits."""

    def __init__(self, name: str) -> None:
        super().__init__()
        task = "SemanticSegmentation" if name == "Segformer" else "ImageClassification"
        config = getattr(transformers, f"{name}Config")(**IMAGES[name])
        self.model = getattr(transformers, f"{name}For{task}")(config)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).logits


@pytest.mark.parametrize("name", TEXTS)
def test_words_with_padding(name: str) -> None:
    torch.manual_seed(0)
    model, mask = Words(name).eval(), torch.ones(3, 10, dtype=torch.int64)
    mask[0, 7:], mask[2, 1:] = 0, 0
    inputs = [torch.randint(5, 60, (3, 10)), mask]
    assert worst_error(model, compile_model(model, inputs), inputs) < 1e-4


@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_the_last_word_before_the_padding(name: str) -> None:
    """It is found at run time, and classified."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**TEXT | TEXTS[name], pad_token_id=0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(ids).logits

    ids = torch.randint(5, 60, (3, 10))
    ids[0, 7:], ids[2, 1:] = 0, 0
    assert worst_error(Classifier(), compile_model(Classifier(), ids), [ids]) < 1e-4


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    torch.manual_seed(0)
    model = Pixels(name).eval()
    for parameter in model.parameters():  # some begin at zero, and hide what is before them
        parameter.data += 0.02 * torch.randn_like(parameter)
    images = torch.randn(2, 3, IMAGES[name].get("image_size", 64), IMAGES[name].get("image_size", 64))
    assert worst_error(model, compile_model(model, images), [images]) < 1e-4


def test_sound() -> None:
    torch.manual_seed(0)
    sizes = {
        "conv_dim": [16, 16],
        "conv_stride": [5, 2],
        "conv_kernel": [10, 3],
        "num_feat_extract_layers": 2,
    }
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    config = transformers.Wav2Vec2Config(**TEXT, **sizes, **positions)

    class Sound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.Wav2Vec2ForSequenceClassification(config)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).logits

    model, sound = Sound().eval(), torch.randn(2, 1000)
    assert worst_error(model, compile_model(model, sound), [sound]) < 1e-4
