//! What a placement costs, before anything is loaded.
