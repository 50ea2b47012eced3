//! f-grams: sets, longest-match, row codec, tables and their stores.
