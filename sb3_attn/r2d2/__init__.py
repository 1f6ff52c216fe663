from sb3_attn.r2d2.r2d2 import R2D2

__all__ = ["R2D2"]
