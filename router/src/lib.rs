//! The front of Gaterail: requests in, tokens out.
#![forbid(unsafe_code)]
