"""Forward passes with gradients: `base` is their interface; `reference` is readable, and `fused` is fast."""
