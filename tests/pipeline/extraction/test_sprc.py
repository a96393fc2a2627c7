"""SPRC and SPN4CIR: their files' names, transformers' Q-Former and vision tower as oracles, and their preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, Blip2QFormerConfig, Blip2QFormerModel

from pipeline.extraction.extractors._qformer import QFormer, sizes_of
from pipeline.extraction.extractors.sprc import blip_caption, target_pad
from pipeline.extraction.hub import ModelError

from .conftest import picture
from .small import TEXTS, save_sprc, sprc_weights


def qformer(weights: dict[str, torch.Tensor]) -> QFormer:
    mine = {n.removeprefix("Qformer.bert."): v for n, v in weights.items() if n.startswith("Qformer.bert.")}
    mine.pop("embeddings.position_ids")
    model = QFormer(sizes_of(mine, 2)).eval()
    model.load_state_dict(mine)
    return model


def test_with_an_image_it_is_the_q_former_of_transformers() -> None:
    weights = sprc_weights()
    ours = qformer(weights)
    config = Blip2QFormerConfig(
        vocab_size=26,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        cross_attention_frequency=2,
        encoder_hidden_size=24,
        use_qformer_text_input=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = Blip2QFormerModel(config).eval()
    state = {
        n.removeprefix("Qformer.bert.")
        .replace("attention.self.", "attention.attention.")
        .replace("embeddings.LayerNorm", "layernorm"): v
        for n, v in weights.items()
        if n.startswith("Qformer.bert.") and "embeddings.word" not in n and "position" not in n
    }
    theirs.load_state_dict(state)
    image, ids = torch.randn(3, 17, 24), torch.randint(1, 26, (3, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4])
    asked = weights["query_tokens"].expand(3, -1, -1)
    words = weights["Qformer.bert.embeddings.word_embeddings.weight"][ids]
    words = words + weights["Qformer.bert.embeddings.position_embeddings.weight"][:6]
    with torch.no_grad():
        expected = theirs(
            query_embeds=torch.cat([asked, words], 1),
            query_length=4,
            encoder_hidden_states=image,
            attention_mask=torch.cat([torch.ones(3, 4, dtype=torch.long), mask], 1),
        ).last_hidden_state
        found = ours(asked, image, ids, mask)
        alone = theirs(query_embeds=asked, encoder_hidden_states=image).last_hidden_state
        torch.testing.assert_close(ours(asked, image, None, None), alone, atol=2e-5, rtol=1e-4)
    seen = torch.cat([torch.ones(3, 4, dtype=torch.bool), mask.bool()], 1)
    torch.testing.assert_close(found[seen], expected[seen], atol=2e-5, rtol=1e-4)


def test_without_an_image_it_is_a_plain_bert_over_all_tokens() -> None:
    weights = sprc_weights()
    ours = qformer(weights)
    config = BertConfig(
        vocab_size=26,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        type_vocab_size=1,
    )
    bert = BertModel(config, add_pooling_layer=False).eval()
    state = {
        n.removeprefix("Qformer.bert."): v
        for n, v in weights.items()
        if n.startswith("Qformer.bert.") and "crossattention" not in n and "_query" not in n and "position_ids" not in n
    }
    state["embeddings.token_type_embeddings.weight"] = torch.zeros(1, 16)
    bert.load_state_dict(state)
    ids = torch.randint(1, 26, (2, 5))
    asked = weights["query_tokens"].expand(2, -1, -1)
    positions = weights["Qformer.bert.embeddings.position_embeddings.weight"]
    words = weights["Qformer.bert.embeddings.word_embeddings.weight"][ids] + positions[:5]
    with torch.no_grad():
        given = torch.cat([asked, words], 1) - positions[:9]  # BERT adds positions to every token
        expected = bert(inputs_embeds=given, attention_mask=torch.ones(2, 9)).last_hidden_state
        found = ours(asked, None, ids, torch.ones(2, 5, dtype=torch.long))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_the_second_stage_answers_queries_and_leaves_targets_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = save_sprc(tmp_path / "a"), save_sprc(tmp_path / "b", second=True)
    images = [picture(n) for n in range(5)]
    np.testing.assert_array_equal(first.encode_images(images), second.encode_images(images))
    assert np.abs(first.encode_pairs(images, TEXTS) - second.encode_pairs(images, TEXTS)).max() > 1e-3
    assert first.card.contaminated_on == ("mt_fashioniq",) and first.dim("query") == 12


def test_a_file_without_the_vision_tower_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    from pipeline.extraction.extractors import load_extractor

    from .conftest import save_bert, spec_of

    bert = save_bert(tmp_path / "bert")
    partial = {n: v for n, v in sprc_weights().items() if not n.startswith("visual_encoder.")}
    torch.save({"Blip2QformerCirAlignPrompt": partial}, tmp_path / "partial.pt")
    torch.save({"CLIP": {}}, tmp_path / "clip.pt")
    for file, what in (
        ("partial.pt", "no whole checkpoint"),
        ("clip.pt", "no checkpoint of SPRC"),
        ("none.pt", "fetch the"),
    ):
        with pytest.raises(ModelError, match=what):
            load_extractor(spec_of("sprc", model=str(tmp_path / file), tokenizer=str(bert)), "cpu")


def test_captions_are_cleaned_as_blip_s() -> None:
    assert blip_caption('Is  Longer. (And) red; "not" blue!\n') == "is longer and red not blue"
    assert len(blip_caption("word " * 80).split()) == 50


def test_target_pad_bars_long_images_and_cuts_the_centre() -> None:
    white = picture(0, (40, 44)).point(lambda _: 255)
    assert target_pad(white, 16).shape == (3, 16, 16) and target_pad(white, 16).min() == 255  # 1.1 : 1, no bars
    tall = target_pad(picture(0, (20, 40)).point(lambda _: 255), 32)  # 2 : 1, so bars of 6 left and right of 20
    assert tall[:, :, 0].max() < 40 and tall[:, :, -1].max() < 40 and tall[:, 16, 16].min() == 255
