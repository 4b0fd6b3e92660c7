"""Forward passes with gradients: `base` is their interface."""
