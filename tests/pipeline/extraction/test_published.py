"""Published configurations: the sizes on the model cards are those of the architectures, built without any weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ResNetConfig,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from manifests.errors import FashionNTMError
from pipeline.extraction.extractors import _cards, extractors, load_extractor
from pipeline.extraction.extractors.clip import clean_text, declared_dim
from pipeline.extraction.extractors.fashionbert import FashionBertNetwork, FashionBertOptions
from pipeline.extraction.extractors.fashionvlp import FashionVlpNetwork, FashionVlpOptions
from pipeline.extraction.tokens import Tokens

from .conftest import spec_of

CLIP_B = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_H = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}


def clip(dim: int, patch: int, vision: dict, text: dict) -> CLIPConfig:
    return CLIPConfig(projection_dim=dim, vision_config={**vision, "patch_size": patch}, text_config=text)


def text(width: int, heads: int, layers: int = 12) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


# the architectures of the model pages: width, layers and heads of both towers, projection, vocabulary of SigLIP 2
PUBLISHED: dict[str, tuple[type, PretrainedConfig]] = {
    "clip-b32": (CLIPModel, clip(512, 32, CLIP_B, text(512, 8))),
    "clip-b16": (CLIPModel, clip(512, 16, CLIP_B, text(512, 8))),
    "clip-l14": (CLIPModel, clip(768, 14, CLIP_L, text(768, 12))),
    "fashionclip": (CLIPModel, clip(512, 32, CLIP_B, text(512, 8))),
    "laion-b32": (CLIPModel, clip(512, 32, CLIP_B, text(512, 8))),
    "laion-h14": (CLIPModel, clip(1024, 14, CLIP_H, text(1024, 16, 24))),
    "siglip-base": (SiglipModel, SiglipConfig()),
    "siglip2-base": (SiglipModel, SiglipConfig(text_config={"vocab_size": 256000})),
    "siglip2-so400m": (
        SiglipModel,
        SiglipConfig(
            text_config={**SO400M, "vocab_size": 256000}, vision_config={**SO400M, "image_size": 384, "patch_size": 14}
        ),
    ),
    "siglip2-base-naflex": (Siglip2Model, Siglip2Config(text_config={"vocab_size": 256000})),
    "bge-vl-base": (CLIPModel, clip(512, 16, CLIP_B, text(512, 8))),
    "bge-vl-large": (CLIPModel, clip(768, 14, CLIP_L, text(768, 12))),
    "marqo-fashionsiglip": (SiglipModel, SiglipConfig()),  # its base, ViT-B-16-SigLIP; its own class wraps it
}


@pytest.mark.parametrize("card", _cards.CLIP, ids=lambda card: card.name)
def test_the_dims_of_a_card_are_those_of_its_architecture(card: _cards.Card) -> None:
    kind, config = PUBLISHED[card.name]
    with torch.device("meta"):
        model = kind(config)
    assert {table: declared_dim(model, table) for table in ("image", "text")} == card.dims
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if kind is CLIPModel:
        width = config.vision_config.hidden_size
        assert shapes["visual_projection.weight"] == (card.dims["image"], width)
        assert shapes["text_projection.weight"] == (card.dims["text"], config.text_config.hidden_size)
    else:
        assert shapes["vision_model.head.mlp.fc2.weight"][0] == card.dims["image"]
        assert shapes["text_model.head.weight"][0] == card.dims["text"]


def test_the_joint_models_default_to_bert_base_and_resnet_50() -> None:
    for network, options, cards, visual in (
        (FashionVlpNetwork, FashionVlpOptions(), _cards.FASHIONVLP, 49 + 49 + 14),
        (FashionBertNetwork, FashionBertOptions(), _cards.FASHIONBERT, 64),
    ):
        settings = {
            "text": BertConfig(vocab_size=30522).to_dict(),
            "image": ResNetConfig().to_dict(),
            "max_tokens": 64,
            "pixel_mean": [0.5] * 3,
            "pixel_std": [0.5] * 3,
            "image_size": 224,
            "landmarks": 14,
            "grid": 8,
            "patch": 32,
        }
        with torch.device("meta"):
            built = network(settings)
        assert built.visual_tokens == visual and built.width == 768 == cards[0].dims["query"] and built.channels == 2048
        bert, resnet = BertConfig(), ResNetConfig()
        assert (options.width, options.layers, options.heads) == (
            bert.hidden_size,
            bert.num_hidden_layers,
            bert.num_attention_heads,
        )
        assert options.image_stem == resnet.embedding_size and options.image_layer == resnet.layer_type
        assert (list(options.image_widths), list(options.image_depths)) == (
            list(resnet.hidden_sizes),
            list(resnet.depths),
        )


def test_a_short_name_stands_for_its_hub_id() -> None:
    for name in extractors.names():
        for card in extractors.get(name).cards:
            assert _cards.preset(extractors.get(name).cards, card.name) is card
            assert _cards.preset(extractors.get(name).cards, card.source) is card
    assert _cards.preset(_cards.CLIP, "someone/else") is None
    with pytest.raises(FashionNTMError, match="'patrickjohncyh/fashion-clip' is not on this machine"):
        load_extractor(spec_of("clip", model="fashionclip"), "cpu")


def test_texts_are_cleaned_as_the_checkpoint_was_trained() -> None:
    assert clean_text("Is Longer, and  RED_ish!", "none") == "Is Longer, and  RED_ish!"
    assert clean_text("Is Longer, and  RED_ish!", "lower") == "is longer, and  red_ish!"
    assert clean_text("Is Longer, and  RED_ish!", "canonical") == "is longer and red ish"


def test_a_truncated_text_is_named_as_it_was_given() -> None:
    """Also if it is cleaned first: the ledger names the item of the text."""
    backend = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "red": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    tokens = Tokens(
        PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]"),
        3,
        clean=partial(clean_text, how="lower"),
    )
    long = "RED red RED red"
    assert [ids.tolist() for ids in tokens.encode([long, "Red"])] == [[2, 2, 2], [2]]
    assert tokens.take_truncated([long, "Red"]) == {long}
