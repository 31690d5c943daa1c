"""Filter configs of transformers: a file may describe the shape of a network, but not what to download or run.

Such configs may also name a hub repository to load code, kernels, a backbone or an adapter from. Hence only the values
listed below are passed on, for the listed types of networks.
"""

from __future__ import annotations

from typing import Any

from ovseg.structures import InputError

PARTS = {"backbone_config": ("swin", "maskformer-swin", "resnet", "deeplab_resnet"), "decoder_config": ("detr",)}
"""Keys of nested configs, and the model types allowed there."""

MASK_NETWORKS = ("mask2former", "maskformer")
TEXT_TOWERS = ("bert", "roberta", "xlm-roberta", "mt5", "m2m_100")  # those that open_clip supports

_BERT = """vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob
    attention_probs_dropout_prob max_position_embeddings type_vocab_size initializer_range layer_norm_eps pad_token_id
    bos_token_id eos_token_id"""
_SWIN = """image_size patch_size num_channels embed_dim depths num_heads window_size mlp_ratio qkv_bias
    hidden_dropout_prob attention_probs_dropout_prob drop_path_rate hidden_act use_absolute_embeddings initializer_range
    layer_norm_eps out_features out_indices"""
_SHAPES = {
    "mask2former": """backbone_config feature_size mask_feature_size hidden_dim encoder_feedforward_dim
        activation_function encoder_layers decoder_layers num_attention_heads dropout dim_feedforward pre_norm
        enforce_input_projection common_stride ignore_value num_queries no_object_weight class_weight mask_weight
        dice_weight train_num_points oversample_ratio importance_sample_ratio init_std init_xavier_std
        use_auxiliary_loss feature_strides output_auxiliary_logits""",
    "maskformer": """backbone_config decoder_config fpn_feature_size mask_feature_size no_object_weight
        use_auxiliary_loss init_std init_xavier_std dice_weight cross_entropy_weight mask_weight
        output_auxiliary_logits""",
    "detr": """num_channels num_queries encoder_layers encoder_ffn_dim encoder_attention_heads decoder_layers
        decoder_ffn_dim decoder_attention_heads encoder_layerdrop decoder_layerdrop activation_function d_model dropout
        attention_dropout activation_dropout init_std init_xavier_std auxiliary_loss position_embedding_type dilation
        class_cost bbox_cost giou_cost mask_loss_coefficient dice_loss_coefficient bbox_loss_coefficient
        giou_loss_coefficient eos_coefficient""",
    "swin": f"{_SWIN} encoder_stride",
    "maskformer-swin": _SWIN,
    "resnet": """num_channels embedding_size hidden_sizes depths layer_type hidden_act downsample_in_first_stage
        downsample_in_bottleneck out_features out_indices""",
    "deeplab_resnet": "depths hidden_sizes stem_size multi_grid out_features out_indices",
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "mt5": """vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads relative_attention_num_buckets
        relative_attention_max_distance dropout_rate layer_norm_epsilon initializer_factor feed_forward_proj
        is_encoder_decoder pad_token_id eos_token_id decoder_start_token_id tie_word_embeddings""",
    "m2m_100": """vocab_size max_position_embeddings encoder_layers encoder_ffn_dim encoder_attention_heads
        decoder_layers decoder_ffn_dim decoder_attention_heads encoder_layerdrop decoder_layerdrop is_encoder_decoder
        activation_function d_model dropout attention_dropout activation_dropout init_std scale_embedding pad_token_id
        bos_token_id eos_token_id decoder_start_token_id""",
}
SHAPES = {kind: frozenset(names.split()) for kind, names in _SHAPES.items()}

# values that transformers writes besides the shape and that have no effect here: accepted and dropped. They include the
# backbone_config of MaskFormer's decoder, which builds no backbone
_IGNORED = """model_type _name_or_path architectures backbone_config chunk_size_feed_forward dtype encoder_stride
    hidden_size id2label is_encoder_decoder label2id num_attention_heads num_hidden_layers num_labels num_layers
    output_attentions output_hidden_states path_norm problem_type pruned_heads return_dict stage_names
    tie_word_embeddings torch_dtype transformers_version use_cache"""
IGNORED = frozenset(_IGNORED.split())


def shape_of(values: Any, source: str, kinds: tuple[str, ...], strict: bool = True) -> dict[str, Any]:
    """Return the values that describe the shape of a network and of its parts, with their `model_type`.

    Args:
        values: a config of transformers.
        source: where the values come from, for the error message.
        kinds: the allowed model types.
        strict: refuse values that are not part of the shape. Files from Hugging Face have many; pass false to drop
            them.

    Raises:
        InputError: the model type is not allowed, or `strict` is set and a value is not part of the shape.
    """
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in kinds:
        raise InputError(
            f"{source} has model_type {kind!r}, which is not supported here; use one of {', '.join(kinds)}"
        )
    shape_keys = SHAPES[kind]
    others = [
        key
        for key, value in values.items()
        if key not in shape_keys | IGNORED and value is not None and value is not False
    ]
    if strict and others:
        raise InputError(f"{source} sets {others[0]!r} of {kind}, which is not part of a network's shape; remove it")
    shape = {
        key: value for key, value in values.items() if key in shape_keys and (key not in PARTS or value is not None)
    }
    parts = {key: shape_of(shape[key], source, PARTS[key], strict) for key in PARTS if key in shape}
    return {"model_type": kind, **shape, **parts}
