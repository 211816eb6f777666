"""Wan 2.1 and 2.2, and what has been made of them."""

import comfy.supported_models as host
import torch
from comfy.ldm.wan.model import AudioProjModel
from comfy.ldm.wan.model_animate import FaceAdapter, FaceEncoder
from concept_sliders.tests.support.tiny_families.family import CPU, OPERATIONS, TEXT, Family, seen, still
from concept_sliders.tests.support.tiny_families.videos import VIDEO
from torch import Tensor, nn

WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 64,
    "in_dim": 16,
    "out_dim": 16,
    "num_heads": 2,
    "ffn_dim": 128,
    "num_layers": 1,
    "freq_dim": 32,
    "text_dim": TEXT,
}
SEEN = {"clip_vision_output": seen(5, 1280)}


class SmallMotionReader(nn.Module):
    """In the place of Animate's reader of faces, which is 25 million weights, none of them in layers for sliders."""

    def get_motion(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 12)."""
        return nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)


def small_faces() -> FaceEncoder:
    """What Animate makes of those faces: 12 million weights in its one size."""
    faces = FaceEncoder(12, 64, 1, device=CPU, dtype=torch.float32, operations=OPERATIONS)
    faces.conv1_local.conv = OPERATIONS.Conv1d(12, 32, 3, device=CPU, dtype=torch.float32)
    for name in ("conv2", "conv3"):
        getattr(faces, name).conv = OPERATIONS.Conv1d(32, 32, 3, stride=2, device=CPU, dtype=torch.float32)
    for name in ("norm1", "norm2", "norm3"):
        setattr(faces, name, OPERATIONS.LayerNorm(32, elementwise_affine=False, device=CPU, dtype=torch.float32))
    faces.out_proj = OPERATIONS.Linear(32, 64, device=CPU, dtype=torch.float32)
    return faces


def one_face_adapter() -> FaceAdapter:
    """Animate's adapter of a single block; ComfyUI's class makes one for every five of its other blocks."""
    return FaceAdapter(64, 2, num_adapter_layers=1, device=CPU, dtype=torch.float32, operations=OPERATIONS)


def small_sound() -> AudioProjModel:
    """HuMo's reader of sound: 39 million weights in its one size."""
    return AudioProjModel(8, 5, 4, 32, 1536, 16, device=CPU, dtype=torch.float32, operations=OPERATIONS)


WANS: dict[str, Family] = {
    "Wan 2.1": Family(host.WAN21_T2V, WAN, VIDEO),
    "Wan 2.1 image to video": Family(host.WAN21_I2V, {**WAN, "model_type": "i2v", "in_dim": 36}, VIDEO),
    "Wan 2.1 VACE": Family(
        host.WAN21_Vace, {**WAN, "model_type": "vace", "vace_in_dim": 96, "vace_layers": 1}, VIDEO
    ),
    "Wan 2.2 5B": Family(host.WAN22_T2V, {**WAN, "in_dim": 48, "out_dim": 48}, (48, 2, 4, 4)),
    "Wan 2.1 control": Family(host.WAN21_FunControl2V, {**WAN, "model_type": "i2v", "in_dim": 48}, VIDEO, extra=SEEN),
    "Wan 2.1 camera": Family(
        host.WAN21_Camera,
        {**WAN, "model_type": "camera", "in_dim": 32, "in_dim_control_adapter": 2},
        VIDEO,
        extra={**SEEN, "camera_conditions": still(1, 2, 2, 64, 64)},
    ),
    "Wan 2.2 camera": Family(
        host.WAN22_Camera,
        {**WAN, "model_type": "camera_2.2", "in_dim": 36, "in_dim_control_adapter": 2},
        VIDEO,
        extra={"camera_conditions": still(1, 2, 2, 64, 64)},
    ),
    "HuMo": Family(
        host.WAN21_HuMo,
        {**WAN, "model_type": "humo", "in_dim": 36},
        VIDEO,
        extra={"audio_embed": still(1, 2, 8, 5, 4), "reference_latents": [still(1, 16, 1, 8, 8)]},
        parts={"audio_proj": small_sound},
    ),
    "Wan 2.2 S2V": Family(
        host.WAN22_S2V,
        {**WAN, "model_type": "s2v", "audio_dim": 8, "num_audio_token": 2, "audio_inject_layers": [0]},
        VIDEO,
        extra={
            "audio_embed": still(1, 25, 8, 8),
            "reference_latents": [still(1, 16, 1, 8, 8)],
            "reference_motion": still(1, 16, 19, 8, 8),
            "control_video": still(1, 16, 2, 8, 8),
        },
    ),
    "Wan 2.2 Animate": Family(
        host.WAN22_Animate,
        {**WAN, "model_type": "animate", "in_dim": 36},
        VIDEO,
        extra={
            **SEEN,
            "face_video_pixels": still(1, 3, 5, 8, 8),
            "pose_video_latent": still(1, 16, 1, 8, 8),
        },
        parts={
            "motion_encoder": SmallMotionReader,
            "face_encoder": small_faces,
            "face_adapter": one_face_adapter,
        },
    ),
    "SCAIL": Family(
        host.WAN21_SCAIL,
        {**WAN, "model_type": "scail", "in_dim": 20},
        VIDEO,
        extra={
            **SEEN,
            "reference_latents": [still(1, 16, 1, 8, 8)],
            "pose_video_latent": still(1, 16, 2, 4, 4),
        },
    ),
}
