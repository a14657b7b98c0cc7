//! Text: tokenizer, chat template, detokenisation, stop strings.
