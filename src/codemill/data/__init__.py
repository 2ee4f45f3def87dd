"""Text and conversations -> packed token batches with loss weights. Nothing here imports torch."""
