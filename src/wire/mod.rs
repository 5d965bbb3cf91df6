//! Pure codecs, one format per file: slices in, views or lengths out, never a panic.

pub mod proxy_protocol;
