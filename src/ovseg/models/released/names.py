"""Map the key names of the released OVSeg to those of an `OpenVocabSegmenter`."""

from __future__ import annotations

import re

# keys that hold no weights: constants, and values derived from the data or the architecture
WEIGHTLESS = re.compile(
    r"(.*\.)?(pixel_mean|pixel_std|num_batches_tracked|relative_position_index|attn_mask|empty_weight"
    r"|input_resolution|context_length|vocab_size)$"
)

# (pattern in the release's name, replacement), applied one after another
SWIN = [
    (r"^patch_embed\.proj", "model.embeddings.patch_embeddings.projection"),
    (r"^patch_embed\.norm", "model.embeddings.norm"),
    (r"^norm(\d)", r"hidden_states_norms.\1"),
    (r"^layers", "model.encoder.layers"),
    (r"(blocks\.\d+)\.norm1", r"\1.layernorm_before"),
    (r"(blocks\.\d+)\.norm2", r"\1.layernorm_after"),
    (r"attn\.relative_position_bias_table", "attention.self.relative_position_bias_table"),
    (r"attn\.proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
]
RESNET = [
    (r"^stem\.conv1\.norm", "network.conv1.1"),
    (r"^stem\.conv2\.norm", "network.conv1.4"),
    (r"^stem\.conv3\.norm", "network.bn1"),
    (r"^stem\.conv1", "network.conv1.0"),
    (r"^stem\.conv2", "network.conv1.3"),
    (r"^stem\.conv3", "network.conv1.6"),
    (r"^res2", "network.layer1"),
    (r"^res3", "network.layer2"),
    (r"^res4", "network.layer3"),
    (r"^res5", "network.layer4"),
    (r"conv(\d)\.norm", r"bn\1"),
    (r"shortcut\.norm", "downsample.1"),
    (r"shortcut\.weight", "downsample.0.weight"),
]
PIXEL_DECODER = [
    (r"^layer_4\.norm", "fpn.stem.1"),
    (r"^layer_4", "fpn.stem.0"),
    *((rf"^adapter_{3 - i}\.norm", f"fpn.layers.{i}.proj.1") for i in range(3)),
    *((rf"^adapter_{3 - i}", f"fpn.layers.{i}.proj.0") for i in range(3)),
    *((rf"^layer_{3 - i}\.norm", f"fpn.layers.{i}.block.1") for i in range(3)),
    *((rf"^layer_{3 - i}", f"fpn.layers.{i}.block.0") for i in range(3)),
    (r"^mask_features", "mask_projection"),
]
PREDICTOR = [
    (r"^query_embed", "model.transformer_module.queries_embedder"),
    (r"^input_proj", "model.transformer_module.input_projection"),
    (r"^mask_embed\.layers\.(\d)", r"mask_head.\1.0"),
    (r"^class_embed\.layers\.0", "query_head.0"),
    (r"^class_embed\.layers\.1", "query_head.2"),
    (r"^transformer\.decoder\.norm", "model.transformer_module.decoder.layernorm"),
    (r"^transformer\.decoder", "model.transformer_module.decoder"),
    (r"multihead_attn", "encoder_attn"),
    (r"norm1", "self_attn_layer_norm"),
    (r"norm2", "encoder_attn_layer_norm"),
    (r"norm3", "final_layer_norm"),
    (r"linear(\d)", r"mlp.fc\1"),
    (r"out_proj", "o_proj"),
]
# joint projections that are separate here: (pattern, replacement, names of the parts in order)
JOINT = [
    (r"attn\.qkv\.", "attention.self.{}.", ("query", "key", "value")),
    (r"in_proj_", "{}_proj.", ("q", "k", "v")),
]
PARTS = [
    # (prefix in the file, prefix in an OpenVocabSegmenter, replacements)
    ("backbone.", "proposer.model.pixel_level_module.encoder.", SWIN),
    ("sem_seg_head.pixel_decoder.", "proposer.model.pixel_level_module.decoder.", PIXEL_DECODER),
    ("sem_seg_head.predictor.", "proposer.", PREDICTOR),
    ("clip_adapter.clip_model.visual.mask_embedding", "clip.clip.visual.prompt.mask_embedding", []),
    ("clip_adapter.clip_model.visual.", "clip.clip.visual.visual.", []),
    ("clip_adapter.clip_model.", "clip.clip.", []),
    ("clip_adapter.non_object_embedding", "proposer.no_object_embedding", []),
]
