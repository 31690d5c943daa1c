"""DeepLab's ResNet ("R101c") as a backbone for Hugging Face's models, built on timm's ResNet.

The stem consists of three 3×3 convolutions. The blocks of the last stage are dilated by a multi-grid, and its first
block keeps stride 2. Batch norms, the stem and the first stage are frozen, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models.resnet import Bottleneck, ResNet
from timm.utils.model import freeze_batch_norm_2d  # type: ignore[attr-defined]
from torch import Tensor
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput


class DeepLabResNetConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of a `DeepLabResNet`; the defaults describe R101c.

    Args:
        depths: number of blocks in each stage.
        hidden_sizes: output channels of each stage.
        stem_size: output channels of the stem.
        multi_grid: dilation of each block in the last stage.
    """

    model_type = "deeplab_resnet"

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 23, 3),
        hidden_sizes: Sequence[int] = (256, 512, 1024, 2048),
        stem_size: int = 128,
        multi_grid: Sequence[int] = (1, 2, 4),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.depths, self.hidden_sizes = list(depths), list(hidden_sizes)
        self.stem_size, self.multi_grid = stem_size, list(multi_grid)
        self.stage_names = ["stem", "stage1", "stage2", "stage3", "stage4"]
        self.set_output_features_output_indices(out_features=self.stage_names[1:], out_indices=None)


class DeepLabResNet(BackboneMixin, PreTrainedModel):  # type: ignore[no-untyped-call]
    """Compute the feature maps of four stages, at strides 4, 8, 16 and 32."""

    config: DeepLabResNetConfig
    config_class = DeepLabResNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: DeepLabResNetConfig) -> None:
        super().__init__(config)
        self.num_features = [config.stem_size, *config.hidden_sizes]
        network: Any = ResNet(
            Bottleneck,  # type: ignore[arg-type]  # timm types this as a block, not as its class
            tuple(config.depths),
            num_classes=0,
            stem_type="deep",
            stem_width=config.stem_size // 2,
            channels=tuple(size // Bottleneck.expansion for size in config.hidden_sizes),
        )
        for block, dilation in zip(network.layer4, config.multi_grid, strict=True):
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
        self.network = freeze_batch_norm_2d(network)  # type: ignore[no-untyped-call]
        for part in (network.conv1, network.bn1, network.layer1):
            part.requires_grad_(False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:  # type: ignore[override]
        """Return feature maps (B, C, h / stride, w / stride) of normalised images (B, 3, h, w)."""
        network = self.network
        features = network.maxpool(network.act1(network.bn1(network.conv1(pixel_values))))
        maps = []
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            features = stage(features)
            maps.append(features)
        return BackboneOutput(feature_maps=tuple(maps))


AutoConfig.register(DeepLabResNetConfig.model_type, DeepLabResNetConfig)
AutoBackbone.register(DeepLabResNetConfig, DeepLabResNet)
