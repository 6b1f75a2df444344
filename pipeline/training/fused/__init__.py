"""LoRA on a frozen Llama, both passes written out for one accelerator: few kernels, no recomputation."""
