"""Fine-tuning on chats: LoRA and QLoRA with peft's adapters, full fine-tuning as the contrast, and merging."""
