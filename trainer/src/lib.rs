//! The batch jobs: tokenizer, mining, joint training, precomputation, evaluation.
