"""From dialogs to token ids: tokenizer, chat template, memory-mapped token sets and batches. Entry: `stage.prepare`."""
