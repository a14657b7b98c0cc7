//! Models from a Hugging Face hub into its cache layout.
